"""A new model's trial load is walled in by the kernel, or the operator is told."""

from __future__ import annotations

import pytest

from servicectl.actions.verification import WALLS, check_confinement
from servicectl.errors import ServicectlError


@pytest.mark.parametrize(("held", "absent"), [((), "no_new_privs, seccomp"), (("no_files", "no_new_privs"), "seccomp")])
def test_a_trial_load_without_its_walls_is_refused_where_they_are_required(held: tuple[str, ...], absent: str) -> None:
    with pytest.raises(ServicectlError, match=f"did not grant {absent} "):
        check_confinement(held, required=True)
    check_confinement(held, required=False)


def test_a_trial_load_within_its_walls_is_accepted() -> None:
    check_confinement(("no_files", *WALLS), required=True)
