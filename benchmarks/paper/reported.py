"""What the paper and its authors report: test errors in percent, Tables 1 to 5 of the paper, as it prints them.

In brackets stands the standard deviation; in Table 5, how much of the gap from source only to target only is closed.
A dash stands where the paper has no such number.
"""

from __future__ import annotations

NO_SUCH_NUMBER = "-"

# Table 1: by labelled digits. First with association, then the methods that the paper compares with.
MNIST = {"100": "0.89 (0.08)", "1,000": "0.74 (0.03)", "all": "0.36 (0.03)"}
MNIST_OTHERS = {
    "Ladder networks, conv small": {"100": "0.89 (0.50)"},
    "improved GAN, permutation invariant": {"100": "0.93 (0.07)"},
    "mutual exclusivity and transformations": {"100": "0.55 (0.16)", "all": "0.27 (0.02)"},
}

# Table 2: the other methods on SVHN, by labelled images. The paper's own are the "all" of Table 3.
SVHN_OTHERS = {
    "DGN": {"1,000": "36.02 (0.10)"},
    "virtual adversarial training": {"1,000": "24.63"},
    "auxiliary deep generative model": {"1,000": "22.86"},
    "skip deep generative model": {"1,000": "16.61 (0.24)"},
    "improved GAN": {"500": "18.44 (4.8)", "1,000": "8.11 (1.3)", "2,000": "6.16 (0.58)"},
    "improved GAN, ensemble": {"1,000": "5.88 (1.0)"},
    "mutual exclusivity and transformations": {"500": "9.62 (1.37)", "1,000": "4.52 (0.40)", "2,000": "3.66 (0.14)"},
}

# Table 3: medians over 10 subsets, by labelled and by unlabelled images.
SVHN = {
    labelled: dict(zip(("0", "1,000", "20,000", "all"), errors, strict=True))
    for labelled, errors in {
        "20": ("81.00 (3.01)", "81.98 (2.58)", "82.15 (1.35)", "82.10 (1.91)"),
        "100": ("55.64 (6.54)", "39.85 (7.19)", "24.31 (7.19)", "23.18 (7.41)"),
        "500": ("17.75 (0.65)", "12.78 (0.99)", "6.61 (0.32)", "6.25 (0.32)"),
        "1,000": ("10.92 (0.24)", "9.10 (0.37)", "5.48 (0.34)", "5.14 (0.17)"),
        "2,000": ("8.25 (0.32)", "7.27 (0.43)", "4.83 (0.15)", "4.60 (0.21)"),
        "all": ("3.09 (0.06)", "2.79 (0.02)", "2.80 (0.03)", "2.69 (0.05)"),
    }.items()
}

# Table 4: by the weight of the visit loss, with 1,000 labels; medians of the least error throughout a training.
VISIT_WEIGHT = {"0": "5.68 (0.53)", "0.25": "1.17 (0.15)", "0.5": "0.82 (0.12)", "1": "0.85 (0.04)"}
VISIT_WEIGHT_OTHERS = {
    "SVHN in the paper": {"0": "7.91 (0.40)", "0.25": "6.31 (0.20)", "0.5": "6.32 (0.07)", "1": "6.43 (0.26)"}
}

# Table 5: SVHN to MNIST.
SVHN_TO_MNIST = {"source only": "18.56", "adapted": "0.51 (99.3 %)", "target only": "0.38"}
SVHN_TO_MNIST_OTHERS = {
    "domain-adversarial training": {"source only": "45.10", "adapted": "26.15 (42.6 %)", "target only": "0.58"},
    "domain separation networks": {"source only": "40.8", "adapted": "17.3 (58.3 %)", "target only": "0.5"},
}
# All of them, as they are called beside another pair of data sets.
SVHN_TO_MNIST_ROWS = {
    "SVHN to MNIST in the paper": SVHN_TO_MNIST,
    **{f"SVHN to MNIST, {method}": errors for method, errors in SVHN_TO_MNIST_OTHERS.items()},
}

# Section 4.2: 81 % test accuracy with 100 labels of each class.
STL10 = "19"

# Of the training with 100 labels that Figure 3 shows.
FIGURE3 = "0.96"

COVERED_REMARK = "in brackets: how much of the gap from source only to target only is closed"
OTHERS_REMARK = "rows without a number here show what the paper has for other methods, or for SVHN"
FULL_MNIST_REMARK = "the paper's numbers are of the full MNIST, with 60,000 training digits"
TABLE3_REMARK = (
    "the paper's Table 3 is of SVHN, with up to all 73,257 training images: another task, whose numbers are left out"
)
VISIT_WEIGHT_REMARK = (
    "the paper's numbers are medians of the least error throughout a training, on the full MNIST: they stand beside "
    "the same here, the least of {tests} tests of a training. Without labels for testing one gets the error at the end"
)
FIGURE2_REMARK = "two labelled digits of each class, the same 20 throughout, as in the paper"
FIGURE3_REMARK = "the paper's test error is that of its Figure 3, on the full MNIST"
MNIST_REMARK = (
    'the original code says of 100 labels: "~1% error rate on the test set" after 5,000 to 10,000 steps, on the full '
    "MNIST (docstring of semisup/mnist_train_eval.py)"
)
SVHN_TO_MNIST_REMARK = (
    "reruns of the original code in issues 14 and 15 of haeusser/learning_by_association reach 2.4 to 4.3 %, where the "
    "paper has 0.51 %"
)
SVHN_TO_MNIST_START_REMARK = (
    "trained as the README of haeusser/learning_by_association has it, but for the start: the adapted network goes on "
    "from the one trained on the source, where the README's command starts from random weights"
)
OTHER_PAIR_REMARK = "the paper's numbers are of SVHN to MNIST: another task"
SECTION_4_6_REMARK = (
    "as section 4.6: trained on the source, labelled and unlabelled, then with unlabelled images of the target in "
    "place of the source's; no label of the target, no augmentation, visit weight 0.5"
)
STL10_REMARK = (
    "the paper gives 81 % test accuracy, the first author the same after a million steps (issue 8 of "
    "haeusser/learning_by_association): an error of 19 %"
)
