"""The plugin in a test run of its own: what happens to guest tests on a machine that cannot run them."""

import pytest

pytest_plugins = ["pytester"]

LACKING = """
    import pytest
    from outboard.errors import SetupError

    @pytest.fixture
    def machine():
        raise SetupError("no QEMU here: do this")

    @pytest.mark.guest
    def test_with_a_fixture_that_lacks_something(machine):
        pass

    @pytest.mark.guest
    def test_that_lacks_something():
        raise SetupError("no QEMU here: do this")
"""


@pytest.fixture
def run(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(LACKING)
    return pytester


def test_a_guest_test_that_cannot_run_is_skipped_loudly(
    run: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    result = run.runpytest_inprocess("--strict-markers")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["*guest tests that this machine cannot run*", "*no QEMU here: do this*"])
    result.stdout.no_fnmatch_line("*no QEMU here*no QEMU here*")


def test_in_ci_a_guest_test_that_cannot_run_fails(
    run: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    run.runpytest_inprocess().assert_outcomes(failed=1, errors=1)


def test_a_setup_error_of_any_other_test_is_its_own(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    pytester.makepyfile("from outboard.errors import SetupError\ndef test_plain(): raise SetupError('mine')")
    pytester.runpytest_inprocess().assert_outcomes(failed=1)
