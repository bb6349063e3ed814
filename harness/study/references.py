"""The arms with which the arms of a sweep are compared: `reference:` and `within:`."""

from harness.study.arms import JOINT, Arm, symbol, value_text
from harness.study.profiles import Chosen, Given
from mixgrpo.text.suggest import did_you_mean


def references_of(chosen: Chosen, arms: list[Arm]) -> dict[str, str]:
    """By arm, the name of the arm that it is compared with."""
    key = chosen.file.within
    if key is None:
        return dict.fromkeys([arm.name for arm in arms], _reference(chosen, arms))
    without = next((arm.name for arm in arms if key not in arm.settings), None)
    if without is not None:
        known = sorted({name for arm in arms for name in arm.settings})
        hint = did_you_mean(key, known)
        raise chosen.error(("within",), f"arm {without} does not set {key}{hint}")
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(repr(arm.settings[key]), []).append(arm)
    if len(arms) > 1 and all(len(group) == 1 for group in groups.values()):
        raise chosen.error(
            ("within",),
            f"compares no arm with another: every value of {key} has one arm; name a setting that "
            "several arms share, or leave it out",
        )
    references: dict[str, str] = {}
    for group in groups.values():
        references |= dict.fromkeys([arm.name for arm in group], _reference(chosen, group))
    return references


def within_label(chosen: Chosen) -> str:
    """How figures call what an arm is compared with; empty without `within`."""
    key, given = chosen.file.within, chosen.get("reference")
    if key is None:
        return ""
    if given is None:
        wanted = "the first"
    elif isinstance(given.value, str):
        arm = (chosen.get("arms") or Given({}, ())).value.get(given.value) or {}
        wanted = arm.get("label", given.value)
    else:
        settings = chosen.flat(given.value, given.key)
        wanted = JOINT.join(f"{symbol(name)} = {value_text(v)}" for name, v in settings.items())
    return f"{wanted}{JOINT}same {symbol(key)}"


def _reference(chosen: Chosen, arms: list[Arm]) -> str:
    """The name of the one of `arms` that `reference:` chooses. ConfigError unless it is one."""
    given = chosen.get("reference")
    if given is None:
        return arms[0].name
    names = [arm.name for arm in arms]
    if isinstance(given.value, str):
        wanted = given.value
        # With a grid beside the arms, a name in the file stands for one arm per grid point.
        fits = [name for name in names if wanted in (name, name.partition(",")[0])]
        if not fits:
            hint = did_you_mean(wanted, names)
            raise chosen.error(given.key, f"no such arm: {wanted}{hint}")
    else:
        settings = chosen.flat(given.value, given.key)
        missing = object()
        fits = [
            arm.name
            for arm in arms
            if all(arm.settings.get(key, missing) == value for key, value in settings.items())
        ]
        wanted = ", ".join(f"{key} = {value}" for key, value in settings.items()) or "nothing"
    if len(fits) == 1:
        return fits[0]
    raise chosen.error(
        given.key,
        f"no arm has {wanted}; the arms are {', '.join(names)}"
        if not fits
        else f"{wanted} fits the arms {', '.join(fits)}; add settings until it fits one",
    )
