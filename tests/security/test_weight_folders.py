"""Nobody else puts weights where servers read ours."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from appo.engines.vllm_server.weight_files import WeightFolder


def test_a_new_folder_is_for_its_owner_alone(tmp_path):
    before = os.umask(0)
    try:
        WeightFolder(str(tmp_path / "a/b"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a/b").stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o1777])
def test_a_folder_that_others_may_write_in_is_refused(tmp_path, mode):
    tmp_path.chmod(mode)
    with pytest.raises(PermissionError, match=f"must be writable for its owner alone, .* mode {mode:04o}"):
        WeightFolder(str(tmp_path))


@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_a_folder_that_others_may_read_will_do(tmp_path, mode):
    tmp_path.chmod(mode)
    assert WeightFolder(str(tmp_path)).root == tmp_path


@pytest.mark.parametrize("is_link", [False, True])
def test_a_folder_of_somebody_else_is_refused(tmp_path, monkeypatch, is_link):
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o755)
    if is_link:
        (tmp_path / "link").symlink_to(folder)
        folder = tmp_path / "link"
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(PermissionError, match="weights_folder must be our own, got"):
        WeightFolder(str(folder))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("name", ["folder", "link"])
def test_a_folder_or_link_that_is_given_away_is_refused(tmp_path, name):
    (tmp_path / "folder").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    os.chown(tmp_path / name, 1001, 1001, follow_symlinks=False)
    with pytest.raises(PermissionError, match=r"weights_folder must be our own, got .* of the user 1001"):
        WeightFolder(str(Path(tmp_path / name)))
