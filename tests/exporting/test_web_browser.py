"""The page in a browser: what it says of pictures is what Keras says, and it asks no other server.

Skipped where Chromium is missing, or npm does not get LiteRT.js.
"""

import functools
import io
import json
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from chromium import Chromium
from export_samples import CLASS_NAMES, PROCESSOR
from PIL import Image
from sklearn.datasets import load_sample_images

import deit_tf
from deit_tf.exporting import web
from deit_tf.exporting.compare import ExportError
from deit_tf.exporting.tflite import export_tflite

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")
IDLE = "document.body.getAttribute('aria-busy') === 'false'"
# Largest difference of a logit, or of a patch's share times their number, over the largest: the
# pixels are the same, so that it is rounding, which a GPU does in another order.
TOLERANCE = 1e-4

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="chromium is not on the PATH")


def encoded(pixels, kind, **options):
    """The bytes of an image file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def ten_pictures():
    """Files by name: photographs as JPEG and PNG, gray, turned, with a profile, half transparent,
    smaller and larger than what the model takes."""
    china, flower = load_sample_images().images
    on_its_side = Image.Exif()
    on_its_side[0x0112] = 6
    see_through = np.dstack([flower[:90, :120], np.full((90, 120), 128, np.uint8)])
    see_through[:45, :, 3] = 0
    return {
        "china.jpg": encoded(china, "JPEG", quality=90),
        "flower.jpg": encoded(flower, "JPEG", quality=75),
        "sharp.jpg": encoded(china[100:300, 100:250], "JPEG", quality=95, subsampling=0),
        "turned.jpg": encoded(china[:200, :330], "JPEG", exif=on_its_side),
        "progressive.jpg": encoded(flower[:, 50:251], "JPEG", progressive=True),
        "gray.jpg": encoded(china[..., 1], "JPEG"),
        "china.png": encoded(china[:157, :211], "PNG"),
        "profile.png": encoded(flower[:101, :64], "PNG", gamma=0.2),
        "transparent.png": encoded(see_through, "PNG"),
        "small.png": encoded(flower[:12, :14], "PNG"),
    }


@pytest.fixture(scope="module")
def site(small_model, tmp_path_factory):
    """A page with one model of small pictures, and the pictures."""
    folder = tmp_path_factory.mktemp("web") / "site"
    try:
        web.write_page(folder)
    except ExportError as error:
        pytest.skip(str(error))
    options = {"processor": PROCESSOR, "labels": CLASS_NAMES, "outputs": "all"}
    export_tflite(small_model, folder / "small.tflite", **options)
    assert web.write_models(folder) == ["small.tflite"]

    for name, content in ten_pictures().items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def page(site, tmp_path_factory):
    """A browser at the page, which has loaded its model, and the page's address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    browser = Chromium(PROGRAM, tmp_path_factory.mktemp("profile"))
    try:
        browser.open(address)
        browser.wait_for(IDLE)
        yield browser, address
    finally:
        browser.close()
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def answers(page):
    """What the page's own classifier says of the ten pictures, by accelerator."""
    browser, _ = page
    script = f"""(async () => {{
        const {{ loadClassifier }} = await import("./classifier.js");
        const file = async (name) => new File([await (await fetch(name)).blob()], name);
        const model = [await file("small.tflite"), await file("small.json")];
        const said = {{}};
        for (const accelerator of ["wasm", "webgpu"]) {{
            const classifier = await loadClassifier(...model, accelerator);
            said[accelerator] = {{ on: classifier.accelerator, pictures: {{}} }};
            for (const name of {json.dumps([*ten_pictures()])}) {{
                const answer = await classifier.classify(await file(name));
                const {{ seen, logits, heads, rollout }} = answer;
                const lists = [seen.pixels, logits, heads, rollout].map((values) => [...values]);
                said[accelerator].pictures[name] = lists;
            }}
        }}
        return said;
    }})()"""
    return browser.run(script)


@pytest.mark.parametrize("accelerator", ["wasm", "webgpu"])
def test_ten_pictures_as_keras_has_them(answers, small_model, accelerator):
    answer = answers[accelerator]
    if answer["on"] != accelerator:
        pytest.skip("this Chromium has no WebGPU")

    for name, content in ten_pictures().items():
        pixels, logits, heads, rollout = map(np.array, answer["pictures"][name])
        seen = PROCESSOR.crop(PROCESSOR.decode(content)).numpy()
        np.testing.assert_array_equal(pixels.reshape(seen.shape), seen, err_msg=name)

        image = PROCESSOR.normalize(seen)[None]
        both = deit_tf.heads(small_model)(image)
        shares = np.ravel(deit_tf.attention_maps(small_model)(image)["rollout"])
        expected = {
            "logits": (logits, np.ravel(small_model(image))),
            "heads": (heads, np.concatenate([both["cls"][0], both["dist"][0]])),
            "rollout": (rollout * len(shares), shares * len(shares)),
        }
        for output, (found, values) in expected.items():
            difference = np.abs(found - values).max() / np.abs(values).max()
            assert difference < TOLERANCE, (name, output, difference)


def test_a_chosen_picture_is_shown(page, site, small_model):
    browser, _ = page
    browser.choose_files("#file", [site / "china.jpg"])
    browser.wait_for(f"{IDLE} && !document.getElementById('result').hidden")
    shown = browser.run("document.getElementById('classes').innerText")

    image = PROCESSOR((site / "china.jpg").read_bytes())[None]
    order = np.argsort(-np.ravel(small_model(image)))
    assert [name for name in shown.split("\n") if name in CLASS_NAMES] == [
        CLASS_NAMES[index] for index in order
    ]
    heads = {
        key: int(np.argmax(values)) for key, values in deit_tf.heads(small_model)(image).items()
    }
    is_hidden = browser.run("document.getElementById('heads').hidden")
    assert is_hidden == (heads["cls"] == heads["dist"])
    assert "ms on W" in browser.run("document.getElementById('times').textContent")
    assert browser.run("document.getElementById('attention').width") == 2  # 16 / 8 patches


def test_what_is_no_picture_is_said(page, site):
    browser, _ = page
    browser.choose_files("#file", [site / "small.json"])
    browser.wait_for(f"{IDLE} && document.getElementById('status').className === 'alarm'")
    assert "together with" in browser.run("document.getElementById('status').textContent")
    browser.choose_files("#file", [site / "style.css"])
    browser.wait_for("document.getElementById('status').textContent.includes('no picture')")


def test_the_camera_gives_a_picture(page):
    browser, _ = page
    browser.run("document.getElementById('open-camera').click()")
    browser.wait_for("document.getElementById('video').videoWidth > 0")
    browser.wait_for("!document.getElementById('camera').hidden")
    browser.run("document.getElementById('caption').textContent = ''")
    browser.run("document.getElementById('take').click()")
    browser.wait_for("document.getElementById('caption').textContent !== ''")


def test_no_request_leaves_the_page_and_no_script_fails(answers, page):
    browser, address = page
    asked = [
        event["request"]["url"]
        for kind, event in browser.events
        if "WillBeSent" in kind and "request" in event
    ]
    own = (address, f"blob:{address}", "data:", "about:blank")
    assert asked and [url for url in asked if not url.startswith(own)] == []
    failed = [event for kind, event in browser.events if kind == "Runtime.exceptionThrown"]
    failed += [
        event["entry"]
        for kind, event in browser.events
        if kind == "Log.entryAdded" and event["entry"]["level"] == "error"
    ]
    assert failed == []
    with pytest.raises(AssertionError):  # the page's policy keeps any script from it
        browser.run("fetch('https://example.invalid/')")
