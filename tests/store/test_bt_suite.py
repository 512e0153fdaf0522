"""fsspec's own test suite of a filesystem, the part that reads, on bt://."""

from __future__ import annotations

import posixpath
import shutil
from hashlib import md5
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.tests.abstract import AbstractFixtures
from fsspec.tests.abstract.get import AbstractGetTests
from fsspec.tests.abstract.open import AbstractOpenTests

from bt_lightning.errors import ReadOnlyError
from bt_lightning.store.catalog.bt_filesystem import BTFileSystem
from bt_lightning.store.open_store import open_store

pytestmark = pytest.mark.matrix

ROOT = "demo@job1/checkpoint-1"
SCENARIO = ["file1", "file2", "subdir/subfile1", "subdir/subfile2", "subdir/nesteddir/nestedfile"]
TWINS = ["subdir.txt", "subdir/subfile.txt"]
EDGES = ["file1", "file2"] + [
    f"subdir{number}/{name}"
    for number in range(2)
    for name in ("subfile1", "subfile2", "nesteddir/nestedfile")
]


class Fixtures(AbstractFixtures):
    """What the suite would write first is published instead."""

    @pytest.fixture(params=["folder", "s3"])
    def publish_files(self, request, tmp_path, published):
        if request.param == "folder":
            url, options = str(tmp_path / "store"), {}
        else:
            url, options = request.getfixturevalue("s3_url"), request.getfixturevalue("s3").options

        def publish_files(files):
            if files:
                published(open_store(url, options), files=files)
            return url, options

        return publish_files

    @pytest.fixture
    def fs(self, publish_files):
        url, options = publish_files({})
        return BTFileSystem(store=url, storage_options=options)

    @pytest.fixture
    def fs_path(self):
        return ROOT

    @pytest.fixture
    def fs_join(self):
        return posixpath.join

    @pytest.fixture
    def local_fs(self):
        return LocalFileSystem(auto_mkdir=True)

    @pytest.fixture
    def local_path(self, tmp_path):
        return str(tmp_path)

    @pytest.fixture
    def supports_empty_directories(self):
        return False

    @pytest.fixture
    def source(self, publish_files):
        def source(names):
            publish_files({f"source/{name}": b"" for name in names})
            return f"{ROOT}/source"

        return source

    @pytest.fixture
    def fs_bulk_operations_scenario_0(self, source):
        return source(SCENARIO)

    @pytest.fixture
    def fs_dir_and_file_with_same_name_prefix(self, source):
        return source(TWINS)

    @pytest.fixture
    def fs_glob_edge_cases_files(self, source):
        return source(EDGES)

    @pytest.fixture
    def fs_10_files_with_hashed_names(self, publish_files):
        names = {str(i).encode(): md5(str(i).encode()).hexdigest() for i in range(10)}
        publish_files({f"source/{name}.txt": data for data, name in names.items()})
        return f"{ROOT}/source"

    @pytest.fixture
    def fs_target(self, publish_files):
        publish_files({"other": b"data"})
        return f"{ROOT}/target"


class TestGet(Fixtures, AbstractGetTests):
    def test_get_directory_recursive(self, fs, publish_files, local_target):
        """The suite's makes the folder first; the same of one that was published."""
        publish_files({"src/file": b"data"})
        target = Path(local_target)
        fs.get(f"{ROOT}/src", local_target, recursive=True)
        assert [path.name for path in target.iterdir()] == ["file"]
        fs.get(f"{ROOT}/src", local_target, recursive=True)
        assert (target / "src" / "file").read_bytes() == b"data"
        shutil.rmtree(target)
        for _ in range(2):
            fs.get(f"{ROOT}/src/", local_target, recursive=True)
            assert [path.name for path in target.iterdir()] == ["file"]


class TestOpen(Fixtures, AbstractOpenTests):
    def test_open_exclusive(self, fs, fs_target):
        """The suite's only test of opening writes first; here each mode that writes is refused."""
        for mode in ("wb", "xb", "ab"):
            with pytest.raises(ReadOnlyError):
                fs.open(fs_target, mode)
        assert not fs.exists(fs_target)
        with fs.open(f"{ROOT}/other", "rb") as file:
            assert file.read() == b"data"
