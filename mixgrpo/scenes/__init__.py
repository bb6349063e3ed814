"""The embedded task: small scenes of coloured shapes, drawn, described, scored and learned."""
