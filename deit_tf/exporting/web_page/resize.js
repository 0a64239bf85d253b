// Resizing with antialias, to the bit as deit_tf/data/preprocess.py has it from TensorFlow
// (scale_and_translate_op.cc): weights and sums in float32, in the same order. A canvas scales otherwise.
// A picture is {pixels: Uint8Array [H, W, 3], height, width}.

const { fround } = Math;
const CHANNELS = 3;

// By name: how far the kernel reaches, and its weight at a distance of 0 or more.
const KERNELS = {
  bicubic: { radius: 2, weight: keys },
  bilinear: { radius: 1, weight: (x) => Math.max(0, fround(1 - x)) },
};

/** Resize a picture, one axis after the other and rounded in between, as Pillow does. */
export function resize(picture, height, width, interpolation) {
  const kernel = KERNELS[interpolation];
  // Pillow resizes the rows first, unless they grow while the columns shrink.
  const columnsFirst = picture.width < width && picture.height > height;
  return columnsFirst
    ? resizeWidth(resizeHeight(picture, height, kernel), width, kernel)
    : resizeHeight(resizeWidth(picture, width, kernel), height, kernel);
}

/** Keys 1981, "Cubic convolution interpolation", with a = -0.5. */
function keys(x) {
  if (x >= 2) return 0;
  if (x >= 1) return fround(fround(fround(fround(fround(fround(-0.5 * x) + 2.5) * x) - 4) * x) + 2);
  return fround(fround(fround(fround(fround(1.5 * x) - 2.5) * x) * x) + 1);
}

/** For each of `size` outputs the first of the `length` inputs that it reads, and their weights. */
function spans(length, size, kernel) {
  const step = fround(1 / fround(size / length)); // inputs per output
  const stretch = Math.max(step, 1); // the kernel widens where the picture shrinks: antialias
  const reach = fround(kernel.radius * stretch);
  const shrink = fround(1 / stretch);
  const inside = (index) => Math.min(Math.max(index, 0), length - 1);

  return Array.from({ length: size }, (_, output) => {
    const center = fround(fround(output + 0.5) * step);
    const start = inside(Math.ceil(fround(fround(center - reach) - 0.5)));
    const stop = inside(Math.floor(fround(fround(center + reach) - 0.5))) + 1;

    const weights = new Float32Array(stop - start);
    let sum = 0;
    for (let i = 0; i < weights.length; i++) {
      const distance = fround(fround(start + i + 0.5) - center);
      weights[i] = kernel.weight(Math.abs(fround(distance * shrink)));
      sum = fround(sum + weights[i]);
    }

    const share = fround(1 / sum);
    return { start, weights: weights.map((weight) => weight * share) };
  });
}

function resizeWidth({ pixels, height, width }, size, kernel) {
  if (width === size) return { pixels, height, width };
  const resized = new Uint8ClampedArray(height * size * CHANNELS);
  const columns = spans(width, size, kernel);

  for (let y = 0; y < height; y++) {
    for (let x = 0; x < size; x++) {
      const { start, weights } = columns[x];
      for (let channel = 0; channel < CHANNELS; channel++) {
        let from = (y * width + start) * CHANNELS + channel;
        let sum = 0;
        for (let i = 0; i < weights.length; i++, from += CHANNELS) {
          sum = fround(sum + fround(weights[i] * pixels[from]));
        }
        resized[(y * size + x) * CHANNELS + channel] = halfUp(sum);
      }
    }
  }

  return { pixels: resized, height, width: size };
}

function resizeHeight({ pixels, height, width }, size, kernel) {
  if (height === size) return { pixels, height, width };
  const row = width * CHANNELS;
  const resized = new Uint8ClampedArray(size * row);
  const rows = spans(height, size, kernel);

  for (let y = 0; y < size; y++) {
    const { start, weights } = rows[y];
    const sums = new Float32Array(row);
    for (let i = 0; i < weights.length; i++) {
      const from = (start + i) * row;
      for (let x = 0; x < row; x++) sums[x] = sums[x] + fround(weights[i] * pixels[from + x]);
    }
    for (let x = 0; x < row; x++) resized[y * row + x] = halfUp(sums[x]);
  }

  return { pixels: resized, height: size, width };
}

function halfUp(value) {
  return Math.floor(fround(value + 0.5));
}
