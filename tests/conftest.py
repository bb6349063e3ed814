"""What every test finds: one thread, and the toy model and rewards known by name."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch is imported: processes that share two cores must not each take both.
os.environ["OMP_NUM_THREADS"] = "1"
# Helpers are imported as tests.mixgrpo.<name>, also where pytest was not started with `python -m`.
if str(Path(__file__).parents[1]) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parents[1]))

# What was started in the background of a script ignores SIGINT, and so would every process that a
# test starts; with nohup, SIGHUP.
for number, default in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, default)

# The same examples every time, and no verdict by the clock of a busy machine.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def toy_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on sys.path from which the toy's entry points are found."""
    import torch

    from tests.mixgrpo.toy import install

    torch.set_num_threads(1)
    site = install(tmp_path_factory.mktemp("site"))
    sys.path.append(str(site))
    yield site
    sys.path.remove(str(site))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """On CI, where everything a test may need can be installed, a skipped test is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if os.environ.get("CI") and skipped and session.exitstatus == 0:
        reporter.write_line(f"\n{len(skipped)} skipped: on CI that is a failure", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
