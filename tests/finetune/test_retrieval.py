"""Images searched for by their features: CMC and mAP, queries and gallery, the rule of cameras, a training by them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from support.runs import Killed, settings, train, write_nets, written_net

from netgraft.data.opening import open_data
from netgraft.data.pictures import Pixels, few
from netgraft.data.search import open_search
from netgraft.errors import UsageError
from netgraft.finetune.engine.processes import Processes
from netgraft.finetune.engine.ranking import found_in_order
from netgraft.finetune.engine.retrieve import Search, retrieve
from netgraft.finetune.engine.watch import Quiet
from netgraft.models.normalisation import Normalisation
from netgraft.report.training import epoch_text, result_lines


@pytest.fixture
def folder(tmp_path):
    return write_nets(tmp_path)


def brute_force(query, gallery, same, counts, distance="euclidean"):
    """Query by query in NumPy: ranks by a full sort, AP by scikit-learn."""
    firsts, precisions = [], []
    for i in range(len(query)):
        kept = np.flatnonzero(counts[i])
        if not same[i, kept].any():
            continue
        if distance == "euclidean":
            far = np.array([np.sqrt(((query[i] - gallery[j]) ** 2).sum()) for j in kept])
        else:
            far = np.array([1 - query[i] @ g / np.linalg.norm(query[i]) / np.linalg.norm(g) for g in gallery[kept]])
        right = same[i, kept]
        firsts.append(1 + np.flatnonzero(right[np.argsort(far, kind="stable")])[0])
        precisions.append(average_precision_score(right, -far))
    found = {f"cmc{k}": 100 * np.mean(np.array(firsts) <= k) for k in (1, 5, 10)}
    return found | {"map": 100 * np.mean(precisions)}


def test_ranks_and_precisions_are_the_formulas():
    rng = np.random.default_rng(0)
    query, gallery = rng.normal(size=(30, 4)), rng.normal(size=(50, 4))
    same, counts = rng.random((30, 50)) < 0.1, rng.random((30, 50)) < 0.8
    same[3] = False
    distances = torch.from_numpy(np.linalg.norm(query[:, None] - gallery, axis=2))
    first, precision = found_in_order(distances, torch.from_numpy(counts), torch.from_numpy(same & counts))
    there = ~precision.isnan()
    assert not there[3]
    truth = brute_force(query, gallery, same, counts)
    assert 100 * float(precision[there].mean()) == pytest.approx(truth["map"], abs=1e-9)
    for k in (1, 5, 10):
        assert 100 * float((first[there] <= k).double().mean()) == pytest.approx(truth[f"cmc{k}"], abs=1e-9)


# ---------------------------------------------------------------------------------------------------- data


def write_people(folder, cameras=True):
    """Digits 0 to 5 to train with; 6 to 9, each by two cameras, to search for; and an image that shows nobody."""
    digits = few(open_data("netgraft:digits"), 12, 0)
    places = {"train": range(6), "query": range(6, 10), "gallery": range(6, 10)}
    for part, identities in places.items():
        for number, label in enumerate(digits.labels):
            if label in identities and (part == "train" or (number % 12 < 3) == (part == "query")):
                camera = f"_c{number % 2 + 1}s1" if cameras else ""
                file = folder / part / f"{label:04d}" / f"{label:04d}{camera}_{number:06d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                digits[number][0].save(file)
    junk = folder / "gallery" / "-1"
    junk.mkdir()
    Image.new("L", (8, 8)).save(junk / "-1_c1s1_000001.png")
    return folder


def test_queries_and_gallery_have_common_classes(tmp_path):
    query, gallery = open_search(str(write_people(tmp_path)))
    assert query.classes == gallery.classes == ("0006", "0007", "0008", "0009")
    assert not any(item.startswith("-1") for item in gallery.items)
    assert not set(query.items) & set(gallery.items)
    assert set(query.cameras) == {1, 2}
    for pictures in (query, gallery):
        for item, label, camera in zip(pictures.items, pictures.labels, pictures.cameras, strict=True):
            assert item.split("/")[0] == pictures.classes[label]
            assert f"_c{camera}s1_" in item


def test_all_of_the_training_folder_trains(tmp_path):
    train_images = open_data(str(write_people(tmp_path)))
    assert (len(train_images), train_images.classes) == (72, tuple(f"{i:04d}" for i in range(6)))
    with pytest.raises(UsageError, match="queries and a gallery"):
        open_data(str(tmp_path), split="test")


def test_without_cameras_there_are_none(tmp_path):
    assert all(part.cameras is None for part in open_search(str(write_people(tmp_path, cameras=False))))


def test_another_folder_has_none(tmp_path):
    assert open_search(str(tmp_path)) is None
    assert open_search("netgraft:digits") is None


# --------------------------------------------------------------------------------------------------- measures


def features_of(net, pixels):
    read = []
    handle = net.head.register_forward_pre_hook(lambda _, args: read.append(args[0].double().numpy()))
    with torch.no_grad():
        net.eval()(pixels.all())
    handle.remove()
    return read[0]


def measured(net, search):
    return retrieve(net, "head", search, Processes("cpu"), torch.inference_mode, 7)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("cameras", [True, False])
def test_images_of_the_querys_own_camera_do_not_count(folder, cameras, distance):
    both = open_search(str(write_people(folder / "people", cameras)))
    query, gallery = (Pixels(pictures, (1, 8, 8), Normalisation()) for pictures in both)
    net = written_net(folder, None)
    same = query.labels.numpy()[:, None] == gallery.labels.numpy()
    counts = np.ones_like(same)
    if cameras:
        counts = ~(same & (np.array(both[0].cameras)[:, None] == np.array(both[1].cameras)))
    truth = brute_force(features_of(net, query), features_of(net, gallery), same, counts, distance)
    assert measured(net, Search(query, gallery, distance)) == pytest.approx(truth, abs=1e-6)


def test_each_image_among_the_rest(folder):
    pixels = Pixels(few(open_data("netgraft:digits"), 6, 0), (1, 8, 8), Normalisation())
    net = written_net(folder, None)
    found = measured(net, Search(pixels, None, "euclidean"))
    features, labels = features_of(net, pixels), pixels.labels.numpy()
    truth = brute_force(features, features, labels[:, None] == labels, ~np.eye(60, dtype=bool))
    assert found == pytest.approx(truth, abs=1e-6)
    assert found["cmc1"] < found["cmc5"] < 100  # its own image, which is nearest, does not count


def test_two_processes_measure_what_one_does(folder):
    pixels = Pixels(few(open_data("netgraft:digits"), 3, 0), (1, 8, 8), Normalisation())
    net, search = written_net(folder, None), Search(pixels, None, "cosine")
    kept = []

    def process(rank, gathered):
        return SimpleNamespace(rank=rank, world=2, device=torch.device("cpu"), all_objects=gathered)

    def stop(mine):
        kept.append(mine)
        raise Killed

    with pytest.raises(Killed):
        retrieve(net, "head", search, process(1, stop), torch.inference_mode, 7)
    whole = retrieve(net, "head", search, process(0, lambda mine: [mine, *kept]), torch.inference_mode, 7)
    assert whole == pytest.approx(measured(net, search), abs=1e-9)


def test_nothing_to_be_found_is_told():
    pixels = Pixels(few(open_data("netgraft:digits"), 1, 0), (1, 8, 8), Normalisation())
    with pytest.raises(UsageError, match="No query has an image to be found"):
        Search(pixels, None, "euclidean").check()


# --------------------------------------------------------------------------------------------------- training


class Listener(Quiet):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def test_a_training_is_measured_by_queries_and_gallery(folder):
    data = write_people(folder / "people")
    given = {"data": str(data), "init": None, "samples_per_class": None, "target_arg": {"num_classes": 6}, "aug": False}
    chosen = settings(folder, **given, epochs=3, triplet=0.1)
    listener = Listener()
    result, last = train(chosen, watch=listener)
    both = [Pixels(pictures, (1, 8, 8), Normalisation()) for pictures in open_search(str(data))]
    truth = measured(written_net(folder, last, num_classes=6), Search(*both, "euclidean"))
    record = result.history[-1]
    for name, value in truth.items():
        assert record[f"eval_{name}"] == pytest.approx(value, abs=1e-6)
    assert "eval_top1" not in record
    assert result.best["eval_map"] == max(each["eval_map"] for each in result.history)
    assert any("its own camera do not count" in text for text in listener.said)
    assert f"mAP {record['eval_map']:.2f} %" in epoch_text(record)
    assert result_lines(result)[0].split()[2:6] == ["rank-1", "rank-5", "rank-10", "mAP"]


def test_test_images_are_searched_for_if_that_is_asked(folder):
    plain, one = train(settings(folder, samples_per_class=4, epochs=1))
    result, other = train(settings(folder, samples_per_class=4, epochs=1, retrieval="cosine"), force=True)
    record = result.history[0]
    assert {"eval_top1", "eval_cmc1", "eval_cmc10", "eval_map"} <= record.keys()
    assert "eval_map" not in plain.history[0]
    assert all(torch.equal(one[name], other[name]) for name in one)  # measuring changes nothing


def test_a_distance_is_known(folder):
    with pytest.raises(UsageError, match="manhattan"):
        settings(folder, retrieval="manhattan")
