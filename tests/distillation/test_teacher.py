"""Teachers see the student's images in their own way, and unfit ones are refused by name."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import deit_tf
from deit_tf.config import IMAGENET_MEAN, IMAGENET_STD
from deit_tf.distillation.teacher import resized
from deit_tf.distillation.teacher_sources import application, application_teacher, load_teacher
from deit_tf.models.detection import PIXELS, UNIT, gives_probabilities, own_normalization

STUDENT = deit_tf.ImageProcessor(32)  # ImageNet's statistics


def frozen(function, size=(32, 32), classes=10, name="net"):
    image = keras.Input((*size, 3))
    model = keras.Model(
        image, keras.layers.Lambda(function, output_shape=(classes,))(image), name=name
    )
    model.trainable = False
    return model


def channel_means(x):
    return keras.ops.pad(keras.ops.mean(x, axis=(1, 2)), ((0, 0), (0, 7)))


def student_batch():
    pixels = np.random.default_rng(0).uniform(size=(4, 32, 32, 3)).astype("float32")  # 0..1
    return pixels, (pixels - IMAGENET_MEAN) / np.float32(IMAGENET_STD)


@pytest.mark.parametrize(
    "mean, std, bgr", [((0.5,) * 3, (0.25,) * 3, False), ((0.1, 0.2, 0.3), (1 / 255,) * 3, True)]
)
def test_own_normalization_and_channel_order(mean, std, bgr):
    pixels, images = student_batch()
    teacher = deit_tf.Teacher(
        frozen(channel_means), deit_tf.ImageProcessor(32, mean=mean, std=std), bgr=bgr
    )
    expected = ((pixels - mean) / std).mean((1, 2))
    expected = expected[:, ::-1] if bgr else expected
    # float32 means of 1,024 pixels, of magnitude up to 255 times the std
    np.testing.assert_allclose(
        teacher.logits(images, STUDENT)[:, :3], expected, rtol=1e-4, atol=1e-5
    )


def test_own_resolution():
    seen = []
    network = frozen(lambda x: (seen.append(x.shape), channel_means(x))[1], size=(48, 40))
    images = student_batch()[1].astype("float32")
    deit_tf.Teacher(network).logits(images, STUDENT)
    assert tuple(seen[-1]) == (4, 48, 40, 3)


@pytest.mark.parametrize("size", [(48, 40), (20, 32), (7, 90)])
def test_the_resize_is_tensorflows(size):
    images = np.random.default_rng(0).normal(size=(2, 32, 24, 3)).astype("float32")
    expected = tf.image.resize(images, size, "bilinear", antialias=True)
    np.testing.assert_allclose(resized(tf.constant(images), size), expected, atol=1e-6)
    of_any_size = tf.function(
        lambda images: resized(images, size),
        input_signature=[tf.TensorSpec((None, None, None, 3))],
    )
    np.testing.assert_array_equal(of_any_size(images), expected)


@pytest.mark.parametrize("size", [(48, 40), pytest.param((16, 32), marks=pytest.mark.slow)])
def test_xla_compiles_a_step_with_a_teacher_of_another_size(size):
    student = deit_tf.create_model("deit_test", num_classes=10, depth=1)
    teacher = deit_tf.Teacher(frozen(channel_means, size=size))
    batch, losses = (student_batch()[1].astype("float32"), np.arange(4)), []
    for compiled in (True, False):
        distiller = deit_tf.Distiller(student, teacher)
        distiller.compile(keras.optimizers.SGD(0.0), jit_compile=False)
        # Not by `fit`: Keras compiles nothing where a test before asked for deterministic kernels.
        step = tf.function(distiller.train_step, jit_compile=compiled)
        losses.append(float(step(batch)["loss"]))
    np.testing.assert_allclose(*losses, rtol=1e-5)  # two compilers' sums of one float32 network


def test_class_order_and_probabilities():
    probabilities = np.float32([0.1, 0.2, 0.3, 0.4])
    network = frozen(
        lambda x: keras.ops.broadcast_to(probabilities, (keras.ops.shape(x)[0], 4)), classes=4
    )
    teacher = deit_tf.Teacher(network, class_order=[3, 0], from_logits=False)
    logits = teacher.logits(student_batch()[1].astype("float32"), STUDENT)
    np.testing.assert_allclose(logits, np.tile(np.log([[0.4, 0.1]]), (4, 1)), rtol=1e-6)


def distill(teacher):
    return deit_tf.Distiller(deit_tf.create_model("deit_test", num_classes=10), teacher)


def test_wrong_class_count_is_refused_by_name():
    with pytest.raises(ValueError, match="Teacher 'resnet' has 7 classes and the student 10"):
        distill(
            deit_tf.Teacher(frozen(lambda x: channel_means(x)[:, :7], classes=7, name="resnet"))
        )


@pytest.mark.parametrize("order", [[0] * 9, [10] * 10])
def test_wrong_class_order_is_refused(order):
    with pytest.raises(
        ValueError, match="`class_order` of teacher 'net' needs 10 numbers from 0 to 9"
    ):
        distill(deit_tf.Teacher(frozen(channel_means), class_order=order))


def test_not_finite_is_refused_by_name():
    with pytest.raises(ValueError, match="Teacher 'net' gives numbers that are not finite"):
        distill(deit_tf.Teacher(frozen(lambda x: channel_means(x) * np.nan)))


def test_trainable_is_refused_by_name():
    model = keras.Sequential(
        [keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(10)], name="mlp"
    )
    with pytest.raises(ValueError, match="Teacher 'mlp' has 2 trainable weights"):
        deit_tf.Teacher(model)


MODULES = {
    "ResNet50": "resnet50",
    "ResNet50V2": "resnet_v2",
    "VGG16": "vgg16",
    "DenseNet121": "densenet",
    "MobileNetV2": "mobilenet_v2",
    "MobileNetV3Small": "mobilenet_v3",
    "EfficientNetV2B0": "efficientnet_v2",
    "ConvNeXtTiny": "convnext",
    "Xception": "xception",
    "NASNetMobile": "nasnet",
    "InceptionV3": "inception_v3",
}


@pytest.mark.parametrize("name, module", MODULES.items())
def test_preprocessing_is_that_of_keras_applications(name, module):
    pixels, images = student_batch()
    _, (mean, std, bgr) = application(name)
    processor = deit_tf.ImageProcessor(32, mean=mean, std=std)
    teacher = deit_tf.Teacher(frozen(channel_means), processor, bgr=bgr)
    expected = getattr(keras.applications, module).preprocess_input(pixels * 255.0).mean((1, 2))
    # values up to 255 in float32
    np.testing.assert_allclose(
        teacher.logits(images, STUDENT)[:, :3], expected, rtol=1e-4, atol=1e-3
    )


def test_every_network_of_keras_applications_is_known():
    networks = [n for n in dir(keras.applications) if n[0].isupper()]
    assert [n for n in networks if application(n)[0] is not getattr(keras.applications, n)] == []
    with pytest.raises(ValueError, match="no network 'ResNet51'.*ResNet50"):
        application("ResNet51")


def test_application_teacher_is_frozen_and_gives_logits():
    teacher = application_teacher("MobileNetV3Small", weights=None, classes=10)
    assert teacher.model.trainable_variables == []
    assert np.array(teacher.logits(student_batch()[1].astype("float32"), STUDENT)).min() < 0


def classifier(ending, nested):
    """A network of free size whose bias alone tells its answer: probabilities, or logits for
    `linear`."""
    dense = keras.layers.Dense(
        3, activation="softmax" if ending == "dense" else None, kernel_initializer="zeros"
    )
    last = {
        "activation": [keras.layers.Activation("softmax")],
        "layer": [keras.layers.Softmax()],
        "operation": [keras.ops.softmax],
    }.get(ending, [])
    image = keras.Input((None, None, 3))
    x = keras.layers.GlobalAveragePooling2D()(image)
    for step in (dense, *last):
        x = step(x)
    dense.bias.assign(np.log([0.2, 0.3, 0.5]))
    model = keras.Model(image, x)
    return keras.Sequential([keras.Input((None, None, 3)), model]) if nested else model


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("ending", ["linear", "dense", "activation", "layer", "operation"])
def test_a_file_that_ends_in_a_softmax_gives_probabilities(tmp_path, caplog, ending, nested):
    classifier(ending, nested).save(tmp_path / "mine.keras")
    teacher = load_teacher(str(tmp_path / "mine.keras"), ("a", "b", "c"))
    assert teacher.from_logits == (ending == "linear")
    logits = teacher.logits(student_batch()[1].astype("float32"), STUDENT)
    np.testing.assert_allclose(
        logits, np.tile(np.log([[0.2, 0.3, 0.5]]), (4, 1)), rtol=1e-5
    )  # exp and log in float32
    assert teacher.image_size is None  # it takes the student's
    assert f"mean {IMAGENET_MEAN} and std {IMAGENET_STD} are assumed" in caplog.text


def test_an_own_network_gives_logits():
    network = deit_tf.create_model("deit_test", num_classes=3)
    assert not gives_probabilities(network)
    assert gives_probabilities(keras.Sequential([network, keras.layers.Softmax()]))


def normalizing(*layers):
    """A frozen network of free size that begins with these layers."""
    steps = [*layers, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    network = keras.Sequential([keras.Input((None, None, 3)), *steps], name="net")
    network.trainable = False
    return network


@pytest.mark.parametrize(
    "layers, expected",
    [
        ([keras.layers.Rescaling(1 / 255)], PIXELS),
        ([keras.layers.Rescaling(1 / 127.5, -1)], PIXELS),
        ([keras.layers.Normalization(mean=[124, 116, 104], variance=[3000] * 3)], PIXELS),
        ([keras.layers.Normalization(mean=[0.5] * 3, variance=[0.06] * 3)], UNIT),
        ([keras.layers.Rescaling(58.0, 124.0)], None),  # from one normalization to another
        ([keras.layers.Conv2D(3, 1)], None),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_what_normalizes_by_itself_is_seen(layers, expected, nested):
    network = normalizing(*layers)
    if nested:
        network = keras.Sequential([keras.Input((None, None, 3)), network])
    assert own_normalization(network) == expected


def test_a_network_that_normalizes_itself_gets_pixels():
    network = normalizing(keras.layers.Rescaling(1 / 255))
    pixels, images = student_batch()
    logits = deit_tf.Teacher(network).logits(images.astype("float32"), STUDENT)
    np.testing.assert_allclose(logits, network(pixels * 255), rtol=1e-4, atol=1e-5)


def test_normalizing_twice_is_refused():
    with pytest.raises(ValueError, match="'net' normalizes its images itself.*would do so twice"):
        deit_tf.Teacher(normalizing(keras.layers.Rescaling(1 / 255)), STUDENT)


def test_another_size_than_the_network_takes_is_refused():
    with pytest.raises(ValueError, match="takes images of 32 x 32 pixels.*Received: .48, 48."):
        deit_tf.Teacher(frozen(channel_means), deit_tf.ImageProcessor(48))


def test_a_softmax_is_seen_in_scripts_too():
    network = normalizing(keras.layers.Conv2D(3, 1))
    softmax = keras.Sequential([network, keras.layers.Softmax()], name="softmax")
    softmax.trainable = False
    assert not deit_tf.Teacher(softmax).from_logits
    with pytest.raises(ValueError, match="gives probabilities.*Pass from_logits=False"):
        distill(deit_tf.Teacher(softmax, from_logits=True))
    with pytest.raises(ValueError, match="gives no probabilities.*Pass from_logits=True"):
        distill(deit_tf.Teacher(network, from_logits=False))
