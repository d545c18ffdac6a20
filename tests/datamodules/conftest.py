from pathlib import Path

import pytest

from mrg.datamodules.iu.openi import read_openi
from mrg.datamodules.iu.record import IURecord

IU_ROOT = Path(__file__).parents[2].parent / "shared/data/iu_xray"


@pytest.fixture(scope="session")
def iu_root() -> Path:
    """The folder of the real IU X-Ray data, which is no part of the project."""
    if not IU_ROOT.is_dir():
        pytest.skip("the IU X-Ray data are not at ../shared/data/iu_xray")
    return IU_ROOT


@pytest.fixture(scope="session")
def iu_xml(iu_root: Path) -> list[IURecord]:
    """The real XML reports, read once."""
    return read_openi(iu_root / "NLMCXR_reports.tgz")
