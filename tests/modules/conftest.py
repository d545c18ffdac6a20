import pytest

from tests.family_checkpoints import save_checkpoint


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Folders of a tiny policy of each family, written when first asked for."""
    folders = {}

    def folder(family):
        if family not in folders:
            folders[family] = save_checkpoint(family, tmp_path_factory.mktemp(family))
        return folders[family]

    return folder
