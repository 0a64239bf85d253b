// From logits to what is shown.

/** Softmax of logits. */
export function softmax(logits) {
  const largest = Math.max(...logits);
  const exponentials = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = exponentials.reduce((total, value) => total + value, 0);
  return exponentials.map((value) => value / sum);
}

/** The `count` largest, first the largest, as {index, probability}. */
export function mostProbable(logits, count) {
  const all = softmax(logits).map((probability, index) => ({ index, probability }));
  return all.sort((one, other) => other.probability - one.probability).slice(0, count);
}

/** The first class of either head, as {cls, dist}, where they differ; null where they agree. */
export function disagreement(heads) {
  if (!heads) return null;
  const classes = heads.length / 2; // [2, C]: class head, distillation head
  const [cls] = mostProbable(heads.subarray(0, classes), 1);
  const [dist] = mostProbable(heads.subarray(classes), 1);
  return cls.index === dist.index ? null : { cls, dist };
}
