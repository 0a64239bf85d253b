// From logits to what is shown.

/** Softmax of logits. */
export function softmax(logits) {
  const largest = Math.max(...logits);
  const exponentials = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = exponentials.reduce((total, value) => total + value, 0);
  return exponentials.map((value) => value / sum);
}

/** The probability of each class by itself, where a picture may have several. */
function sigmoid(logits) {
  return Array.from(logits, (logit) => 1 / (1 + Math.exp(-logit)));
}

/** The `count` largest, first the largest, as {index, probability}; by the sidecar's `activation`. */
export function mostProbable(logits, count, activation) {
  const probabilities = activation === "sigmoid" ? sigmoid(logits) : softmax(logits);
  const all = probabilities.map((probability, index) => ({ index, probability }));
  return all.sort((one, other) => other.probability - one.probability).slice(0, count);
}

/** The first class of either head, as {cls, dist}, where they differ; null where they agree. */
export function disagreement(heads, activation) {
  if (!heads) return null;
  const classes = heads.length / 2; // [2, C]: class head, distillation head
  const [cls] = mostProbable(heads.subarray(0, classes), 1, activation);
  const [dist] = mostProbable(heads.subarray(classes), 1, activation);
  return cls.index === dist.index ? null : { cls, dist };
}
