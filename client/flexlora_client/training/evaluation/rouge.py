"""ROUGE-L, the longest common subsequence of two texts as an F-measure (Lin 2004, ACL workshop Text Summarization)."""


def rouge_l(prediction: str, reference: str) -> float:
    """F1 in [0, 1] of the longest common subsequence, over lower-cased tokens parted by white space."""
    predicted, expected = prediction.lower().split(), reference.lower().split()
    common = _common_subsequence(predicted, expected)
    return 2 * common / (len(predicted) + len(expected)) if common else 0.0


def _common_subsequence(left: list[str], right: list[str]) -> int:
    lengths = [0] * (len(right) + 1)
    for token in left:
        diagonal = 0  # of the previous row, one column to the left
        for column, other in enumerate(right, 1):
            above = lengths[column]
            lengths[column] = diagonal + 1 if token == other else max(above, lengths[column - 1])
            diagonal = above
    return lengths[-1]
