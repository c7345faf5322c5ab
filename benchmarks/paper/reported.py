"""What the paper and its authors report: test errors in percent, and where they were read.

The paper's text was not at hand. Numbers that end in a question mark were written down from memory of it and have to be
checked there before they are cited. Others have a source. n/a stands where not even memory is sure, a dash where the
paper has no such number.
"""

from __future__ import annotations

NOT_KNOWN, NO_SUCH_NUMBER = "n/a", "-"

# Error in percent of SVHN to MNIST, "Table 5" of the paper, quoted in issues 14 and 15 of the original repository.
SVHN_TO_MNIST = {"source only": "18.56?", "adapted": "0.51", "target only": "0.38?"}

# By labelled digits, with association.
MNIST = {"100": "0.89?", "1,000": "0.74?", "all": "0.36?"}

# By labelled and by unlabelled images; the grid is named in issue 6 of the original repository.
SVHN = {
    labelled: dict(zip(("0", "1,000", "20,000", "all"), errors, strict=True))
    for labelled, errors in {
        "20": ("81.00?", "81.98?", "82.15?", "82.10?"),
        "100": ("55.64?", "39.85?", "24.31?", "23.18?"),
        "500": ("17.75?", "12.78?", "6.61?", "6.25?"),
        "1,000": ("10.92?", "9.10?", "5.48?", "5.14?"),
        "2,000": ("8.25?", "7.27?", "4.78?", "4.60?"),
        "all": ("3.09?", "2.79?", "2.80?", "2.69?"),
    }.items()
}

UNCHECKED = "?: written down from memory of the paper; check it there before citing it"
NO_TEXT = "n/a: not known, the paper's text was not at hand"
MNIST_REMARK = (
    'the original code says of 100 labels: "~1% error rate on the test set" after 5,000 to 10,000 steps, on the full '
    "MNIST (docstring of semisup/mnist_train_eval.py)"
)
SVHN_TO_MNIST_REMARK = (
    "the paper's 0.51 % is quoted in issues 14 and 15 of haeusser/learning_by_association; reruns of the original code "
    "in the same threads reach 2.4 to 4.3 %"
)
SVHN_TO_MNIST_START_REMARK = (
    "trained as the README of haeusser/learning_by_association has it, but for the start: the adapted network goes on "
    "from the one trained on the source, where the README's command starts from random weights"
)
STL10_REMARK = (
    "the first author gives 81 % test accuracy after a million steps (issue 8 of haeusser/learning_by_association), "
    "an error of 19 %; the paper's own decimals could not be verified"
)
