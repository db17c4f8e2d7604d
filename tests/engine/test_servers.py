from __future__ import annotations

import re
from pathlib import Path

import pytest

from u2pl.data import class_tables
from u2pl.engine.servers import SERVERS, place_of, refuse_unfit, server_named, server_of
from u2pl.errors import UserError

VOC, CITYSCAPES = SERVERS["voc"], SERVERS["cityscapes"]


def test_result_for_voc_lies_where_its_kit_puts_it() -> None:
    place = VOC.place(Path("JPEGImages/2008_000006.png"))
    assert place.as_posix() == "results/VOC2012/Segmentation/comp6_test_cls/2008_000006.png"


@pytest.mark.parametrize("name", ["berlin_000000_000019_leftImg8bit", "berlin_000000_000019"])
def test_result_for_cityscapes_is_found_by_its_scripts(name: str) -> None:
    """They look for CITY_123456_123456*.png, and stop where there are two."""
    place = CITYSCAPES.place(Path(f"test/berlin/{name}.png"))
    assert place.as_posix() == "cityscapes/berlin_000000_000019_pred_labelIds.png"


def test_ids_are_the_servers_and_found_by_name() -> None:
    assert CITYSCAPES.table(["bicycle", "Traffic Light", "road"]).tolist() == [33, 19, 7]
    assert VOC.table(["tv/monitor", "background", "potted plant"]).tolist() == [20, 0, 16]
    assert VOC.table(class_tables.VOC).tolist() == list(range(21))
    assert len(CITYSCAPES.ids) == 19


def test_class_that_a_server_does_not_score_is_told() -> None:
    with pytest.raises(UserError, match=r"voc server has no class 'plane'"):
        VOC.table(["background", "plane"])


@pytest.mark.parametrize(("server", "name"), [("voc", "street"), ("cityscapes", "2008_000006")])
def test_image_that_a_server_does_not_know_is_told(server: str, name: str) -> None:
    with pytest.raises(UserError, match=rf"such as {SERVERS[server].example}, got '{name}'"):
        SERVERS[server].place(Path(f"{name}.png"))


def test_two_results_of_one_name_are_refused() -> None:
    names = [Path(f"{folder}/2008_000006.png") for folder in "ab"]
    with pytest.raises(UserError, match=re.escape("a/2008_000006.png and b/2008_000006.png")):
        refuse_unfit(VOC, names, class_tables.VOC)


def test_unknown_server_gets_the_list() -> None:
    with pytest.raises(UserError, match=r"Expected a server of voc, cityscapes, got 'vox'") as e:
        server_named("vox")
    assert e.value.exit_code == 2


def test_other_kinds_of_pictures_keep_their_folders() -> None:
    assert server_of("masks") is None
    assert place_of("masks", Path("a/b.png")) == Path("masks/a/b.png")
    assert place_of(VOC.kind, Path("2008_000006.png")) == VOC.place(Path("2008_000006.png"))
