"""Where jobs that wait in a queue since version 0.1 look for their code; to be removed in 0.2."""

from harness.launching.pack import Pack as Pack
