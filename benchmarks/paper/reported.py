"""What the paper and its authors report, as far as it could be verified, and where it was read.

Numbers that were not read in a text that can be named are left out; the tables say n/a in their place.
"""

from __future__ import annotations

NOT_VERIFIED = "n/a"

# Error in percent of SVHN to MNIST, "Table 5" of the paper, quoted in issues 14 and 15 of the original repository.
SVHN_TO_MNIST_ADAPTED = "0.51"

NO_TEXT = "n/a: the paper's own number could not be verified from a text at hand"
MNIST_REMARK = (
    'the original code says of 100 labels: "~1% error rate on the test set" after 5,000 to 10,000 steps, on the full '
    "MNIST (docstring of semisup/mnist_train_eval.py)"
)
SVHN_TO_MNIST_REMARK = (
    "the paper's 0.51 % is quoted in issues 14 and 15 of haeusser/learning_by_association; reruns of the original code "
    "in the same threads reach 2.4 to 4.3 %"
)
STL10_REMARK = (
    "the first author gives 81 % test accuracy after a million steps (issue 8 of haeusser/learning_by_association), "
    "an error of 19 %; the paper's own decimals could not be verified"
)
