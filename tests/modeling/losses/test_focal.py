"""Focal losses: values by hand, identities, gradients at extreme logits."""

from __future__ import annotations

import math

from d2_ext.errors import ConfigError
from d2_ext.modeling.losses.focal import product_focal_loss, sigmoid_focal_loss

import pytest
import torch
import torchvision
from torch import Tensor

LABELS = torch.tensor([0, 2, 3, 1, -1, 3])  # of 3 classes: 3 is background, -1 ignored


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return torch.nn.functional.one_hot(labels.clamp(min=0), classes + 1)[:, :classes].float()


def test_values_by_hand() -> None:
    # p = 1/2: positive 1/4 * (1/2)^2 * ln 2, negative 3/4 * (1/2)^2 * ln 2
    assert sigmoid_focal_loss(torch.zeros(1, 1), torch.tensor([0])).item() == pytest.approx(math.log(2) / 16)
    assert sigmoid_focal_loss(torch.zeros(1, 1), torch.tensor([1])).item() == pytest.approx(3 * math.log(2) / 16)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.7, 1.0), (0.5, 0.0)])
def test_integer_labels_give_torchvisions_loss_and_gradient(alpha: float, gamma: float) -> None:
    logits = (torch.randn(6, 3) * 4).requires_grad_()
    seen = LABELS >= 0
    theirs = torchvision.ops.sigmoid_focal_loss(
        logits[seen], one_hot(LABELS, 3)[seen], alpha=alpha, gamma=gamma, reduction="sum"
    )
    ours = sigmoid_focal_loss(logits, LABELS, alpha=alpha, gamma=gamma)
    torch.testing.assert_close(ours, theirs)
    (our_gradient,) = torch.autograd.grad(ours, logits)
    (their_gradient,) = torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(our_gradient, their_gradient)


def test_a_class_weight_is_a_factor_of_the_labeled_term_alone() -> None:
    # One location of class 0 and one of class 1, p = 1/2 everywhere: terms of 1/16 ln 2 (own) and 3/16 ln 2 (other).
    logits, labels, weights = torch.zeros(2, 2), torch.tensor([0, 1]), torch.tensor([1.0, 4.0])
    expected = (1 + 3 + 4 * 1 + 3) / 16 * math.log(2)
    assert sigmoid_focal_loss(logits, labels, class_weights=weights).item() == pytest.approx(expected)
    certain = torch.full((2, 1), 50.0)  # of the filter: the product is the class's probability
    for form in ("log", "probability"):
        found = product_focal_loss(logits, certain, labels, class_weights=weights, form=form)
        assert found.item() == pytest.approx(expected), form


def test_the_rows_add_up_and_ignored_rows_count_nothing() -> None:
    logits = torch.randn(6, 3)
    rows = sigmoid_focal_loss(logits, LABELS, reduction="rows")
    torch.testing.assert_close(rows.sum(), sigmoid_focal_loss(logits, LABELS))
    assert rows[4] == 0


def test_no_locations_keep_the_graph() -> None:
    logits = torch.zeros(0, 3, requires_grad=True)
    sigmoid_focal_loss(logits, torch.zeros(0, dtype=torch.long)).backward()
    assert logits.grad is not None


@pytest.mark.parametrize("form", ["log", "probability"])
def test_the_product_form_is_the_focal_loss_of_the_product(form: str) -> None:
    logits, filters = torch.randn(6, 3), torch.randn(6, 1)
    prob = logits.sigmoid() * filters.sigmoid()
    seen = LABELS >= 0
    expected = torchvision.ops.sigmoid_focal_loss(torch.logit(prob)[seen], one_hot(LABELS, 3)[seen], reduction="sum")
    torch.testing.assert_close(product_focal_loss(logits, filters, LABELS, form=form), expected)


@pytest.mark.parametrize("gradient_form", [("log", -0.25), ("probability", 0.0)])
def test_a_hopeless_positive_keeps_its_gradient_in_the_log_form_only(gradient_form: tuple[str, float]) -> None:
    form, expected = gradient_form
    # p = sigmoid(-30)^2 = 9e-27: the derivative of -0.25 (1 - p)^2 ln p by either logit is -0.25.
    logits = torch.full((1, 1), -30.0, requires_grad=True)
    filters = torch.full((1, 1), -30.0, requires_grad=True)
    product_focal_loss(logits, filters, torch.tensor([0]), form=form).backward()
    assert logits.grad.item() == pytest.approx(expected, abs=1e-6)
    assert filters.grad.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("size", [-1e4, -100.0, 100.0, 1e4])
@pytest.mark.parametrize("label", [0, 1])
def test_any_logit_gives_a_finite_loss_and_gradient(size: float, label: int) -> None:
    logits = torch.full((1, 1), size, requires_grad=True)
    filters = torch.full((1, 1), -size, requires_grad=True)
    loss = product_focal_loss(logits, filters, torch.tensor([label])) + sigmoid_focal_loss(
        logits, torch.tensor([label])
    )
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert filters.grad.isfinite().all()


def test_the_log_form_is_differentiated_right() -> None:
    logits = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    filters = torch.randn(6, 1, dtype=torch.float64, requires_grad=True)

    def in_double(a: Tensor, b: Tensor) -> Tensor:
        from d2_ext.modeling.losses.focal import _product_focal_log

        return _product_focal_log(a, b, one_hot(LABELS, 3).double(), 0.25, 2.0).sum()

    assert torch.autograd.gradcheck(in_double, (logits, filters))


@pytest.mark.parametrize("form", ["log", "probability"])
def test_the_product_form_runs_under_autocast(form: str) -> None:
    logits = torch.randn(6, 3, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = product_focal_loss(logits, torch.randn(6, 1, dtype=torch.bfloat16), LABELS, form=form)
    assert loss.dtype == torch.float32
    loss.backward()
    assert logits.grad.isfinite().all()


def test_an_unknown_form_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="Known: log, probability"):
        product_focal_loss(torch.zeros(1, 1), torch.zeros(1, 1), torch.tensor([0]), form="logs")


def test_a_negative_alpha_weighs_all_classes_the_same() -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 2, 3, 3, 1, 3])
    target = torch.nn.functional.one_hot(labels, 4)[:, :3].float()
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    missing = (logits.sigmoid() - target).abs()
    torch.testing.assert_close(sigmoid_focal_loss(logits, labels, alpha=-1.0), (missing**2 * entropy).sum())
