from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from factories import CLASS_COLORS, write_dataset
from u2pl.data.file_list import FileList
from u2pl.data.sources import (
    MaskEncoding,
    Sample,
    default_colors,
    load_dataset,
    split_hash,
    write_lists,
)
from u2pl.errors import UserError


def _edit(path: Path, **changes: Any) -> Path:
    """Change keys of a dataset.yaml; None takes a key out."""
    tree = yaml.safe_load(path.read_text()) | changes
    path.write_text(yaml.safe_dump({k: v for k, v in tree.items() if v is not None}))
    return path


def _touch(folder: Path, *names: str) -> None:
    """Make empty files: load_dataset opens none."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def _names(samples: Any) -> list[str]:
    return [sample.name for sample in samples]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_dataset(tmp_path)


def test_plain_folders_are_paired(path: Path) -> None:
    dataset = load_dataset(path)
    assert dataset.classes == ("ground", "wall", "tree")
    assert dataset.num_classes == 3
    assert _names(dataset.labeled) == [f"labeled_{i}" for i in range(4)]
    assert _names(dataset.unlabeled) == [f"unlabeled_{i}" for i in range(6)]
    assert dataset.labeled[1].mask == path.parent.resolve() / "masks" / "labeled_1.png"
    assert all(sample.mask is None for sample in dataset.unlabeled)
    assert dataset.test == ()
    assert dataset.colors == default_colors(3)
    assert load_dataset(path.parent) == dataset
    assert dataset.read_mask(dataset.val[0]).shape == (40, 56)


def test_unlabelled_files_are_kept_as_names_and_become_samples_when_asked(path: Path) -> None:
    unlabeled = load_dataset(path).unlabeled
    assert isinstance(unlabeled, FileList)
    folder = path.parent.resolve() / "unlabeled"
    assert unlabeled[2] == Sample("unlabeled_2", folder / "unlabeled_2.png")


def test_name_that_is_a_suffix_alone_is_no_image(path: Path) -> None:
    (path.parent / "unlabeled" / ".png").touch()
    _edit(path, unlabeled={"images": ["unlabeled/.png", "unlabeled/unlabeled_1.png"]})
    assert _names(load_dataset(path).unlabeled) == ["unlabeled_1"]


def test_text_file_of_paths_is_a_list_of_files(path: Path) -> None:
    (path.parent / "some.txt").write_text(
        "unlabeled/unlabeled_2.png\n# no\n\nimages/labeled_0.png\n"
    )
    _edit(path, unlabeled={"images": "some.txt"})
    names = _names(load_dataset(path).unlabeled)
    assert names == ["unlabeled/unlabeled_2", "images/labeled_0"]
    (path.parent / "some.txt").write_text("# nothing\n")
    with pytest.raises(UserError, match=r"some\.txt of 'unlabeled: images' names no file"):
        load_dataset(path)
    (path.parent / "some.txt").write_text("unlabeled/no.png\n")
    with pytest.raises(UserError, match="1 files of 'unlabeled: images' do not exist"):
        load_dataset(path)
    _edit(path, unlabeled={"images": "none.txt"})
    with pytest.raises(UserError, match=r"none\.txt of 'unlabeled: images' does not exist"):
        load_dataset(path)


def test_no_image_is_opened(tmp_path: Path) -> None:
    path = write_dataset(tmp_path)
    for image in tmp_path.rglob("*.png"):
        image.write_bytes(b"")
    assert len(load_dataset(path).labeled) == 4


def test_names_are_paths_inside_the_images_folder(path: Path) -> None:
    _touch(path.parent, "images/town/a.JPG", "masks/town/a.png", "images/.hidden.png")
    assert "town/a" in _names(load_dataset(path).labeled)
    assert ".hidden" not in _names(load_dataset(path).labeled)


def test_globs_pair_by_what_the_wildcards_match(tmp_path: Path) -> None:
    path = write_dataset(tmp_path)
    _touch(tmp_path, "left/ulm/ulm_0_left.png", "left/bonn/b_1_left.png", "left/bonn/note.txt")
    _touch(tmp_path, "fine/ulm/ulm_0_ids.png", "fine/bonn/b_1_ids.png", "fine/bonn/b_1_color.png")
    _edit(path, labeled={"images": "left/*/*_left.png", "masks": "fine/*/*_ids.png"})
    labeled = load_dataset(path).labeled
    assert _names(labeled) == ["bonn/b_1_left", "ulm/ulm_0_left"]
    assert [sample.mask.name for sample in labeled if sample.mask] == [
        "b_1_ids.png",
        "ulm_0_ids.png",
    ]


def test_globs_with_a_fixed_stem_pair_by_folder(tmp_path: Path) -> None:
    path = write_dataset(tmp_path)
    _touch(tmp_path, "scenes/a/photo.jpg", "scenes/a/mask.png", "scenes/b/photo.jpg")
    _touch(tmp_path, "scenes/b/mask.png")
    _edit(path, labeled={"images": "scenes/*/photo.jpg", "masks": "scenes/*/mask.png"})
    labeled = load_dataset(path).labeled
    assert [s.mask.parent.name for s in labeled if s.mask] == ["a", "b"]


def test_lists_of_files_pair_by_stem(path: Path) -> None:
    images = ["images/labeled_2.png", "images/labeled_0.png"]
    masks = ["masks/labeled_0.png", "masks/labeled_2.png"]
    _edit(path, labeled={"images": images, "masks": masks})
    labeled = load_dataset(path).labeled
    assert _names(labeled) == ["labeled_2", "labeled_0"]
    assert [sample.mask.stem for sample in labeled if sample.mask] == ["labeled_2", "labeled_0"]
    _edit(path, labeled={"images": ["images/none.png"], "masks": masks})
    with pytest.raises(UserError, match=r"1 files of 'labeled: images' do not exist: .*none\.png"):
        load_dataset(path)


def test_stems_that_are_not_unique_are_never_guessed(tmp_path: Path) -> None:
    path = write_dataset(tmp_path)
    _touch(tmp_path, "pics/a/0.jpg", "pics/b/0.jpg", "flat/0.png")
    _edit(path, labeled={"images": "pics", "masks": ["flat/0.png"]})
    with pytest.raises(UserError, match="2 of 2 images in 'labeled' have no mask"):
        load_dataset(path)


def test_list_selects_and_orders(path: Path) -> None:
    lines = "# best ones\nlabeled_3\n\nlabeled_0.png\nimages/labeled_1.png\n"
    (path.parent / "labeled.txt").write_text(lines)
    _edit(path, labeled={"images": "images", "masks": "masks", "list": "labeled.txt"})
    assert _names(load_dataset(path).labeled) == ["labeled_3", "labeled_0", "labeled_1"]


def test_one_folder_can_serve_all_sections_by_lists(path: Path) -> None:
    lists = {"labeled": "0", "unlabeled": "1\n2", "val": "3"}
    for section, numbers in lists.items():
        names = [f"labeled_{n}" for n in numbers.split()]
        (path.parent / f"{section}.txt").write_text("\n".join(names))
    both = {"images": "images", "masks": "masks"}
    _edit(path, **{section: both | {"list": f"{section}.txt"} for section in lists})
    dataset = load_dataset(path)
    assert [len(s) for s in dataset.sections.values()] == [1, 2, 1, 0]
    assert dataset.unlabeled[0].mask is None


def test_folders_are_listed_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []
    walk = os.walk

    def count(top: str, **options: Any) -> Any:
        listed.append(top)
        return walk(top, **options)

    monkeypatch.setattr(os, "walk", count)
    _edit(path, unlabeled={"images": "images"})
    load_dataset(path)
    assert len(listed) == len(set(listed)) == 4


def test_root_moves_the_folders(path: Path) -> None:
    moved = path.parent / "settings"
    moved.mkdir()
    path.rename(moved / "dataset.yaml")
    _edit(moved / "dataset.yaml", root="..")
    assert len(load_dataset(moved / "dataset.yaml").labeled) == 4


def test_written_lists_read_back_in_order(path: Path) -> None:
    dataset = load_dataset(path)
    write_lists(dataset, path.parent)
    assert (path.parent / "val.txt").read_text() == "val_0\nval_1\nval_2\n"
    assert not (path.parent / "test.txt").exists()
    _edit(path, val={"images": "val/images", "masks": "val/masks", "list": "val.txt"})
    assert load_dataset(path).val == dataset.val


def _write_voc(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = "".join(
        f"<object><name> {name} </name><part><name>head</name></part></object>" for name in names
    )
    path.write_text(f"<annotation><filename>x.jpg</filename>{objects}</annotation>")


def test_classes_that_are_always_there_join_every_tagged_image(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, tags=True)
    text = "image,classes\nunlabeled_0,tree\nunlabeled_1,\nunlabeled_2,ground\n"
    (tmp_path / "tags.csv").write_text(text)
    _edit(path, tags={"file": "tags.csv", "always": ["ground"]})
    tags = [sample.tags for sample in load_dataset(path).unlabeled]
    assert tags == [(0, 2), (0,), (0,), None, None, None]


def test_voc_annotations_name_the_classes_of_their_image(path: Path) -> None:
    folder = path.parent / "Annotations"
    _write_voc(folder / "unlabeled_0.xml", "tree", "tree", "bird")
    _write_voc(folder / "unlabeled_2.xml", "wall", "tree")
    (folder / "other.xml").write_text("not read, for no unlabelled image has its name")
    _edit(path, tags={"voc_xml": "Annotations", "skip": ["bird"]})
    tags = [sample.tags for sample in load_dataset(path).unlabeled]
    assert tags == [(2,), None, (1, 2), None, None, None]


def test_voc_annotation_of_no_object_holds_what_is_always_there(path: Path) -> None:
    _write_voc(path.parent / "Annotations" / "unlabeled_0.xml")
    _write_voc(path.parent / "Annotations" / "unlabeled_1.xml", "wall")
    _edit(path, tags={"voc_xml": "Annotations", "always": ["ground"]})
    assert [sample.tags for sample in load_dataset(path).unlabeled][:3] == [(0,), (0, 1), None]
    with pytest.raises(UserError, match=r"unlabeled_0\.xml: no object names a class"):
        load_dataset(_edit(path, tags={"voc_xml": "Annotations"}))


def test_tags_of_masks_are_the_classes_that_they_hold(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, mask_format="rgb")
    (tmp_path / "hidden").mkdir()
    ignore, ground, tree = (1, 2, 3), CLASS_COLORS[0], CLASS_COLORS[2]
    for name, colors in {
        "unlabeled_0": [ground, tree],
        "unlabeled_1": [ignore, ignore],
        "unlabeled_2": [tree, ignore],
        "other": [(9, 9, 9), (9, 9, 9)],
    }.items():
        Image.fromarray(np.array([colors], np.uint8)).save(tmp_path / "hidden" / f"{name}.png")
    _edit(path, tags={"masks": "hidden"}, ignore_color=[*ignore])
    tags = [sample.tags for sample in load_dataset(path).unlabeled]
    assert tags == [(0, 2), None, (2,), None, None, None]
    assert all(sample.mask is None for sample in load_dataset(path).unlabeled)
    for name in ("unlabeled_0", "unlabeled_1", "unlabeled_2"):  # what is remembered is not read
        file = tmp_path / "hidden" / f"{name}.png"
        found = file.stat()
        file.write_bytes(b"x" * found.st_size)
        os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert [sample.tags for sample in load_dataset(path).unlabeled] == tags
    (tmp_path / "hidden" / "unlabeled_1.png").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"unlabeled_0\.png: the file is not an image"):
        load_dataset(path)


def _section(path: Path, **changes: Any) -> dict[str, Any]:
    """Return the labelled section with keys added."""
    section: dict[str, Any] = yaml.safe_load(path.read_text())["labeled"]
    return section | changes


def test_id_map_belongs_to_its_section_alone(path: Path) -> None:
    _edit(path, labeled=_section(path, id_map={1: "tree", 0: 1}))
    dataset = load_dataset(path)
    sample, val = dataset.labeled[0], dataset.val[0]
    assert sample.mask_encoding == MaskEncoding("index", ((0, 1), (1, 2)))
    assert val.mask_encoding == MaskEncoding()
    ids = np.asarray(Image.open(sample.mask or ""))
    expected = np.select([ids == 0, ids == 1], [1, 2], 255)
    assert np.array_equal(dataset.read_mask(sample), expected)
    assert np.array_equal(dataset.read_mask(val), np.asarray(Image.open(val.mask or "")))


def test_a_section_may_have_its_own_mask_format(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, mask_format="rgb")
    before = load_dataset(path)
    ids = before.read_mask(before.labeled[0])
    for sample in before.labeled:
        assert sample.mask is not None
        Image.fromarray(before.read_mask(sample).astype(np.uint8)).save(sample.mask)
    dataset = load_dataset(_edit(path, labeled=_section(path, mask_format="index")))
    assert np.array_equal(dataset.read_mask(dataset.labeled[0]), ids)
    assert np.array_equal(dataset.read_mask(dataset.val[0]), before.read_mask(before.val[0]))
    _edit(path, labeled=_section(path, mask_format="index", id_map={2: "ground"}))
    assert set(np.unique(load_dataset(path).read_mask(dataset.labeled[1]))) <= {0, 1, 2}


def test_a_sample_says_by_itself_how_its_mask_is_read(tmp_path: Path) -> None:
    dataset = load_dataset(write_dataset(tmp_path, num_classes=2, mask_format="binary"))
    Image.fromarray(np.array([[0, 1, 255]], np.uint8)).save(tmp_path / "seed.png")
    seed = Sample("seed", tmp_path / "seed.png", mask=tmp_path / "seed.png")
    assert dataset.read_mask(seed).tolist() == [[0, 1, 255]]
    assert set(np.unique(dataset.read_mask(dataset.labeled[0]))) == {0, 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id_map": {1: "tre"}}, "to the unknown class 'tre'; .* Did you mean 'tree'?"),
        ({"id_map": {1: 3}}, "gives 1 to the unknown class 3; name one of 'classes' or its id, 0"),
        ({"id_map": {1: True}}, "the unknown class True"),
        ({"id_map": {1: ["tree"]}}, r"the unknown class \['tree'\]"),
        ({"id_map": {65536: "tree"}}, "must have ids from 0 to 65535, got 65536"),
        ({"id_map": {-1: "tree"}}, "must have ids from 0 to 65535, got -1"),
        ({"id_map": {"1": "tree"}}, "must have ids from 0 to 65535, got '1'"),
        ({"id_map": {}}, "must name classes as {id: class}, got {}"),
        ({"id_map": "map.json"}, "must name classes as {id: class}, got 'map.json'"),
        ({"mask_format": "grey"}, "expected mask_format of 'labeled' to be one of index, rgb"),
        ({"mask_format": "rgb"}, "rgb needs a color for each class"),
        ({"mask_format": "binary"}, "binary needs exactly two classes"),
    ],
)
def test_faulty_encoding_of_a_section_is_refused(
    path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_dataset(_edit(path, labeled=_section(path, **changes)))
    assert "\n" not in str(error.value)


def test_id_map_goes_with_index_masks_alone(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, num_classes=2, mask_format="binary")
    _edit(path, labeled=_section(path, id_map={255: 1}))
    with pytest.raises(UserError, match="needs index masks, but mask_format is binary"):
        load_dataset(path)


@pytest.mark.parametrize("changes", [{"id_map": {1: "tree"}}, {"mask_format": "index"}])
def test_unlabeled_has_no_mask_to_describe(path: Path, changes: dict[str, Any]) -> None:
    key = next(iter(changes))
    with pytest.raises(UserError, match=f"'unlabeled' has no masks to read; take its {key} out"):
        load_dataset(_edit(path, unlabeled={"images": "unlabeled"} | changes))


@pytest.mark.parametrize("kind", ["folder", "glob", "files", "list"])
def test_sections_may_lie_in_other_data_sets(tmp_path: Path, kind: str) -> None:
    source = write_dataset(tmp_path / "source", num_unlabeled=0, num_val=0).parent
    target = write_dataset(tmp_path / "target", num_labeled=4, seed=1).parent
    (tmp_path / "here").mkdir()
    lists = [str(source / "images" / f"labeled_{i}.png") for i in range(4)]
    (tmp_path / "here" / "source.txt").write_text("\n".join(lists))
    labeled: dict[str, Any] = {
        "folder": {"images": "../source/images", "masks": str(source / "masks")},
        "glob": {"images": f"{source}/images/*.png", "masks": "../source/masks/*.png"},
        "files": {
            "images": lists,
            "masks": [f"../source/masks/labeled_{i}.png" for i in range(4)],
        },
        "list": {"images": "../source/images", "masks": "../source/masks", "list": "source.txt"},
    }[kind]
    tree = {
        "classes": ["ground", "wall", "tree"],
        "labeled": labeled,
        "unlabeled": {"images": str(target / "images")},
        "val": {"images": "../target/val/images", "masks": "../target/val/masks"},
    }
    path = tmp_path / "here" / "dataset.yaml"
    path.write_text(yaml.safe_dump(tree))
    dataset = load_dataset(path)
    assert _names(dataset.labeled) == _names(dataset.unlabeled)  # of different images
    assert dataset.labeled[0].image == source.resolve() / "images" / "labeled_0.png"
    assert dataset.unlabeled[0].image == target.resolve() / "images" / "labeled_0.png"
    assert dataset.read_mask(dataset.labeled[3]).shape == (40, 56)


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_leaks_are_found_through_linked_folders(path: Path) -> None:
    (path.parent / "linked").symlink_to(path.parent / "val" / "images")
    _edit(path, unlabeled={"images": ["linked/val_0.png"]})
    with pytest.raises(UserError, match="1 images stand in 'unlabeled' and also in 'val'"):
        load_dataset(path)
    (path.parent / "val.txt").write_text("linked/val_1.png\n")
    val = {"images": "val/images", "masks": "val/masks", "list": "val.txt"}
    assert _names(load_dataset(_edit(path, val=val)).val) == ["val_1"]


def test_split_hash_follows_names_and_order(path: Path) -> None:
    val = load_dataset(path).val
    assert split_hash(val) == hashlib.sha256(b"val_0\nval_1\nval_2").hexdigest()
    assert split_hash(val[::-1]) != split_hash(val)


def test_default_colors_are_distinct() -> None:
    assert len(set(default_colors(256))) == 256
    assert default_colors(256)[255] == (224, 224, 192)


def test_tags_come_with_unlabeled_images_only(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, tags=True)
    (tmp_path / "tags.csv").write_text(
        "image,classes\nunlabeled_0.png,tree; ground\nunlabeled_3,wall\nlabeled_0,wall\n"
    )
    dataset = load_dataset(path)
    assert [s.tags for s in dataset.unlabeled] == [(0, 2), None, None, (1,), None, None]
    assert all(sample.tags is None for sample in dataset.labeled)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,classes\nunlabeled_0,tre\n", "unknown class 'tre' for 'unlabeled_0'.*'tree'"),
        ("image,classes\nunlabeled_0,\n", "leave out images whose classes are not known"),
        ("image,classes\nunlabeled_0\n", "leave out images whose classes are not known"),
        ("name,tags\n", "expected the header 'image,classes'"),
        ("image,classes\nother,tree\n", "the tags name no image of 'unlabeled'"),
        ("image,classes\n", "the tags name no image of 'unlabeled'; .* 'unlabeled_0'"),
        ("", "expected the header 'image,classes'"),
        ("image,classes\nunlabeled_0,tree,wall\n", "expected 'image,class;class'"),
    ],
)
def test_faulty_tags_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write_dataset(tmp_path, tags=True)
    (tmp_path / "tags.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        load_dataset(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clases": []}, "unknown key 'clases'. Did you mean 'classes'?"),
        ({"classes": None}, "expected 'classes' to be a list of names, got None"),
        ({"classes": ["a", "b", "a"]}, "the class 'a' stands there twice"),
        ({"classes": ["a", False]}, "expected a class name, got False; put it in quotes"),
        ({"classes": [{"color": [1, 2, 3]}]}, "expected a class as {name, color}"),
        ({"classes": ["a", {"name": "b", "color": [1, 2, 3]}]}, "give all or none"),
        ({"classes": [{"name": "b", "color": [1, 2]}]}, r"expected a color as \[red"),
        ({"ignore_index": 2}, "expected ignore_index between 3"),
        ({"ignore_index": "none"}, "got 'none'"),
        ({"mask_format": "grey"}, "expected mask_format to be one of index, rgb, binary"),
        ({"mask_format": "binary"}, "binary needs exactly two classes, got 3"),
        ({"mask_format": "rgb"}, "rgb needs a color for each class"),
        ({"root": "nowhere"}, "the root folder .*nowhere does not exist"),
        ({"labeled": None}, "expected images in the section 'labeled', found none"),
        ({"labeled": {"images": "empty", "masks": "masks"}}, "section 'labeled', found none"),
        ({"labeled": {"images": "none", "masks": "masks"}}, "none of 'labeled: images' does not"),
        ({"labeled": {"images": "images", "masks": "none"}}, "'labeled: masks' does not exist"),
        ({"labeled": {"images": "images"}}, "the section 'labeled' needs 'masks'"),
        ({"labeled": {"masks": "masks"}}, "expected 'labeled' to have 'images'"),
        ({"labeled": {"images": 3, "masks": "masks"}}, "a folder, a glob or a list of files"),
        ({"unlabeled": {"images": "images", "lst": "x"}}, "'lst' in 'unlabeled'.*'list'"),
        ({"unlabeled": {"images": "images", "list": "no.txt"}}, "list .*no.txt of 'unlabeled'"),
        ({"unlabeled": {"images": "val/images"}}, "3 images stand in 'unlabeled' and .*'val'"),
        ({"tags": "no.csv"}, "no.csv do not exist"),
        ({"tags": ["a.csv"]}, "expected tags to be a CSV file, or to have one of file, voc_xml, m"),
        ({"tags": {"file": "a.csv", "masks": "masks"}}, "to have one of file, voc_xml, masks, got"),
        ({"tags": {"voc_xlm": "x"}}, "to have one of file, voc_xml, masks, got"),
        ({"tags": {"masks": "masks", "alway": []}}, "unknown key 'alway' in 'tags'.*'always'"),
        ({"tags": {"masks": "masks", "skip": []}}, "only voc_xml takes 'skip' in 'tags'"),
        ({"tags": {"masks": "masks", "always": "a"}}, "expected 'tags: always' to be a list of n"),
        ({"tags": {"masks": "masks", "always": ["tre"]}}, "unknown class 'tre' in 'tags: always'"),
        ({"tags": {"voc_xml": "masks", "skip": ["tree"]}}, "'tags: skip' names the class 'tree'"),
        ({"tags": {"voc_xml": "no"}}, "the folder .*no of 'tags: voc_xml' does not exist"),
        ({"tags": {"voc_xml": "masks"}}, "the tags name no image of 'unlabeled'"),
        ({"tags": {"masks": "masks"}}, "the tags name no image of 'unlabeled'"),
    ],
)
def test_faulty_yaml_is_refused(path: Path, changes: dict[str, Any], message: str) -> None:
    (path.parent / "empty").mkdir()
    with pytest.raises(UserError, match=message) as error:
        load_dataset(_edit(path, **changes))
    assert "\n" not in str(error.value)


def test_colors_that_clash_in_rgb_masks_are_refused(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, mask_format="rgb")
    assert load_dataset(path).colors[0] == (40, 40, 60)
    with pytest.raises(UserError, match="share a color"):
        load_dataset(_edit(path, ignore_color=[40, 40, 60]))
    assert load_dataset(_edit(path, ignore_color=[0, 0, 0])).ignore_color == (0, 0, 0)


@pytest.mark.parametrize("text", ["- a\n- b\n", "", "a: [", "\x00"])
def test_file_that_is_no_yaml_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.yaml").write_text(text)
    with pytest.raises(UserError, match=r"dataset\.yaml"):
        load_dataset(tmp_path / "dataset.yaml")


def test_missing_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml does not exist"):
        load_dataset(tmp_path / "none.yaml")


def test_require_says_which_sections_must_hold_images(path: Path) -> None:
    _edit(path, labeled=None)
    assert load_dataset(path, require=("unlabeled", "val")).labeled == ()
    with pytest.raises(UserError, match="section 'test'"):
        load_dataset(path, require=("test",))


def test_first_three_missing_masks_are_named(path: Path) -> None:
    for mask in (path.parent / "masks").iterdir():
        mask.unlink()
    message = r"4 of 4 images .* mask in masks: labeled_0, labeled_1, labeled_2, \.\.\.;"
    with pytest.raises(UserError, match=message):
        load_dataset(path)


def test_list_entries_without_image_or_twice_are_refused(path: Path) -> None:
    _edit(path, unlabeled={"images": "unlabeled", "list": "u.txt"})
    (path.parent / "u.txt").write_text("x\nunlabeled_0\ny\nz\nw\n")
    with pytest.raises(UserError, match=r"4 of 5 entries have no image .*: x, y, z, \.\.\.;"):
        load_dataset(path)
    (path.parent / "u.txt").write_text("unlabeled_0\nunlabeled_0.png\n")
    with pytest.raises(UserError, match=r"'unlabeled_0\.png' stands there twice"):
        load_dataset(path)


def test_two_images_of_one_name_are_refused(path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(path.parent / "images" / "labeled_0.jpg")
    with pytest.raises(UserError, match="belong to more than one file: labeled_0;"):
        load_dataset(path)


# names, paths and links


@pytest.mark.parametrize("images", ["unlabeled", "unlabeled/**/*.png"])
def test_link_that_leads_back_is_told_and_not_followed_for_ever(path: Path, images: str) -> None:
    for name in "ab":
        (path.parent / "unlabeled" / name).symlink_to(".", target_is_directory=True)
    with pytest.raises(UserError, match=r"again and again; take out the link that leads back"):
        load_dataset(_edit(path, unlabeled={"images": images}))


def test_folder_that_is_linked_twice_is_listed_twice(path: Path) -> None:
    (path.parent / "more").mkdir()
    for name in "ab":
        (path.parent / "more" / name).symlink_to("../unlabeled", target_is_directory=True)
    names = _names(load_dataset(_edit(path, unlabeled={"images": "more"})).unlabeled)
    assert len(names) == 12
    assert names[0] == "a/unlabeled_0"


def test_folder_that_cannot_be_listed_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its images would be missing without a word."""
    (path.parent / "unlabeled/closed").mkdir()
    scandir = os.scandir

    def refuse(folder: str) -> Any:
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot list the folder .*closed: Permission denied"):
        load_dataset(path)


def test_folder_with_the_suffix_of_an_image_is_no_image(path: Path) -> None:
    (path.parent / "unlabeled/x.png").mkdir()
    assert len(load_dataset(path).unlabeled) == 6


def test_glob_leads_upwards_only_before_its_first_wildcard(path: Path) -> None:
    inner = {"images": "images/../unlabeled/*.png"}
    assert len(load_dataset(_edit(path, unlabeled=inner)).unlabeled) == 6
    with pytest.raises(UserError, match=r"has '\.\.' behind a wildcard; only what stands before"):
        load_dataset(_edit(path, unlabeled={"images": "*/../unlabeled/*.png"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": 5}, "expected a path for 'root', got 5; put it in quotes"),
        ({"root": "a\0b"}, r"the path 'a\\x00b' of 'root' has control characters"),
        ({"unlabeled": {"images": "a\nb"}}, "of 'unlabeled: images' has control characters"),
        ({"unlabeled": {"images": ["a\x1bb"]}}, "of 'unlabeled: images' has control characters"),
        ({"unlabeled": {"images": "unlabeled", "list": 3}}, "a path for 'unlabeled: list', got 3"),
        ({"unlabeled": {"images": "n" * 5000}}, "of 'unlabeled: images' does not exist"),
        ({"tags": {"file": 3}}, "expected a path for 'tags', got 3"),
        ({"tags": "a\0b"}, "of 'tags' has control characters"),
        ({"classes": ["a", "b\nc"]}, r"expected class names of visible characters, got 'b\\nc'"),
        ({"classes": ["a", " "]}, "expected class names of visible characters, got ' '"),
        ({3: 4}, "unknown key '3'"),
        ({"labeled": {"images": "images", "masks": "masks", 3: 4}}, "unknown key '3' in 'labeled'"),
    ],
)
def test_names_and_paths_that_no_file_has_are_refused(
    path: Path, changes: dict[Any, Any], message: str
) -> None:
    tree = yaml.safe_load(path.read_text()) | changes
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match=message):
        load_dataset(path)


@pytest.mark.parametrize("name", [b"\xff", b"a\nb", b"\x1b[31m"])
def test_file_name_that_no_list_can_hold_is_told(path: Path, name: bytes) -> None:
    with open(os.fsencode(path.parent) + b"/unlabeled/" + name + b".png", "wb"):
        pass
    with pytest.raises(UserError, match=r"1 file names of 'unlabeled: images' have control"):
        load_dataset(path)


def test_list_may_begin_with_a_byte_order_mark(path: Path) -> None:
    (path.parent / "u.txt").write_bytes("\ufeffunlabeled_1\r\nunlabeled_0\r\n".encode())
    _edit(path, unlabeled={"images": "unlabeled", "list": "u.txt"})
    assert _names(load_dataset(path).unlabeled) == ["unlabeled_1", "unlabeled_0"]


def test_list_of_impossible_paths_has_no_image(path: Path) -> None:
    (path.parent / "u.txt").write_bytes(b"a\0b/c\n" + b"n" * 5000 + b"\n")
    with pytest.raises(UserError, match=r"2 of 2 entries have no image"):
        load_dataset(_edit(path, unlabeled={"images": "unlabeled", "list": "u.txt"}))


@pytest.mark.parametrize(
    "line", ["ignore_index: {}", "root: {}", "unlabeled: {}", "tags: {}", "ignore_color: {}"]
)
def test_numbers_of_any_length_are_refused_in_a_sentence(path: Path, line: str) -> None:
    """Python itself refuses to write them."""
    _edit(path, unlabeled=None)
    path.write_text(path.read_text() + line.format("0x" + "f" * 9000) + "\n")
    with pytest.raises(UserError, match="a number of 36000 bits"):
        load_dataset(path)


def test_key_that_stands_twice_is_refused(path: Path) -> None:
    path.write_text(path.read_text() + "classes: [a, b]\n")
    with pytest.raises(UserError, match=r"dataset\.yaml is not a YAML file"):
        load_dataset(path)


def test_path_that_is_too_long_for_a_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="File name too long"):
        load_dataset(tmp_path / ("n" * 5000))
