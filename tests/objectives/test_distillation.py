"""Learning from a teacher: DeiT's equations 2 and 3, and a teacher that stays as it is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from small_nets import CONVOLUTIONAL, VITS, images_for, small_net
from vitkit.data.transforms import Preprocessing
from vitkit.objectives.distillation import Distilling, Teacher, distillation_loss
from vitkit.objectives.settings import DistillationConfig
from vitkit.objectives.supervised import cross_entropy

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
LABELS, PLACES = torch.tensor([3, 0]), np.arange(2)


def logits(seed, batch=6, classes=5):
    return 3 * torch.randn(batch, classes, generator=torch.Generator().manual_seed(seed))


def test_hard_targets_are_the_teachers_likeliest_classes():
    ours, theirs = logits(0), logits(1)
    expected = -ours.log_softmax(-1)[torch.arange(6), theirs.argmax(-1)].mean()
    torch.testing.assert_close(distillation_loss(ours, theirs, "hard"), expected)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_targets_are_the_teachers_softened_probabilities(temperature):
    ours, theirs = logits(0).double(), logits(1).double()
    p, q = (theirs / temperature).softmax(-1), (ours / temperature).softmax(-1)
    expected = temperature**2 * (p * (p.log() - q.log())).sum(-1).mean()
    found = distillation_loss(ours, theirs, "soft", temperature)
    torch.testing.assert_close(found, expected)


def test_a_net_that_answers_as_its_teacher_has_nothing_to_learn_of_soft_targets():
    assert distillation_loss(logits(0), logits(0), "soft", 2.0).abs() < 1e-6


@pytest.mark.parametrize("targets", ["hard", "soft"])
def test_logits_of_half_precision_give_a_loss_in_float32(targets):
    ours, theirs = logits(0).bfloat16(), logits(1).bfloat16()
    found = distillation_loss(ours, theirs, targets)
    assert found.dtype == torch.float32
    assert found == distillation_loss(ours.float(), theirs.float(), targets)


def distilling(student, teacher, **options):
    theirs, ours = (Preprocessing(net.config.image_size) for net in (teacher, student))
    settings = {name: options.pop(name) for name in list(options) if name in ("share", "targets")}
    return Distilling(
        student, Teacher(teacher, theirs, ours), DistillationConfig(**settings), **options
    )


def trained(config, seed):
    net = small_net(config, seed)
    if getattr(net, "head_distillation", None) is not None:
        torch.nn.init.normal_(net.head_distillation.weight)
    return net


@pytest.mark.parametrize("labels", [LABELS, F.one_hot(LABELS, 5) * 0.7 + 0.06])
def test_without_a_token_one_head_learns_from_labels_and_teacher(labels):
    student, teacher = trained(VITS["token"], 0), trained(VITS["mean"], 1)
    images = images_for(student)
    learner = distilling(student, teacher, share=0.3, smoothing=0.1)
    ours = student(images)
    theirs = teacher(F.interpolate(images, (8, 12), mode="bicubic", antialias=True))
    from_teacher = F.cross_entropy(ours, theirs.argmax(-1))
    expected = 0.7 * cross_entropy(ours, labels, smoothing=0.1) + 0.3 * from_teacher
    torch.testing.assert_close(learner(images, labels, PLACES), expected)


def test_with_a_token_each_head_has_a_loss_of_its_own():
    student, teacher = trained(VITS["distilled"], 0), trained(VITS["token"], 1)
    images = images_for(student)
    tokens = student.tokens(images)
    of_class, of_teacher = student.head(tokens[:, 0]), student.head_distillation(tokens[:, 1])
    expected = (
        F.cross_entropy(of_class, LABELS) + F.cross_entropy(of_teacher, teacher(images).argmax(-1))
    ) / 2
    torch.testing.assert_close(distilling(student, teacher)(images, LABELS, PLACES), expected)
    # Afterwards the two are averaged.
    torch.testing.assert_close(student(images), (of_class + of_teacher) / 2)


@pytest.mark.parametrize(("share", "silent"), [(0.0, "head_distillation"), (1.0, "head")])
def test_with_a_token_a_head_without_a_share_learns_nothing(share, silent):
    student, teacher = trained(VITS["distilled"], 0), trained(VITS["token"], 1)
    distilling(student, teacher, share=share)(images_for(student), LABELS, PLACES).backward()
    for name in ("head", "head_distillation"):
        assert getattr(student, name).weight.grad.any() == (name != silent)


@pytest.mark.parametrize("kind", list(CONVOLUTIONAL))
def test_gradients_and_statistics_reach_the_student_alone(kind):
    student, teacher = trained(VITS["token"], 0), trained(CONVOLUTIONAL[kind], 1).train()
    before = {name: t.clone() for name, t in teacher.state_dict().items()}
    learner = distilling(student, teacher, targets="soft").train()
    learner(images_for(student), LABELS, PLACES).backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert not teacher.training
    assert all(torch.equal(t, before[name]) for name, t in teacher.state_dict().items())


def test_the_teacher_is_no_part_of_the_learner():
    student, teacher = trained(VITS["token"], 0), trained(VITS["mean"], 1)
    learner = distilling(student, teacher)
    assert {name.removeprefix("net.") for name in learner.state_dict()} == set(student.state_dict())
    assert len(list(learner.parameters())) == len(list(student.parameters()))


def test_the_teacher_sees_pixels_normalised_and_sized_as_it_learned_them():
    net = trained(VITS["mean"], 1)  # reads 8 x 12
    theirs, students = Preprocessing((8, 12), **IMAGENET), Preprocessing((24, 36))
    pixels = torch.rand(2, 3, 24, 36)
    mean, std = (torch.tensor(IMAGENET[name]).view(3, 1, 1) for name in ("mean", "std"))
    seen = F.interpolate((pixels - mean) / std, (8, 12), mode="bicubic", antialias=True)
    found = Teacher(net, theirs, students)((pixels - 0.5) / 0.5)
    torch.testing.assert_close(found, net(seen), rtol=1e-4, atol=1e-4)
    same = Preprocessing((8, 12))
    images = images_for(net)
    assert torch.equal(Teacher(net, same, same)(images), net(images))


def test_the_teachers_classes_come_in_the_students_order():
    net = trained(VITS["token"], 1)
    same, order = Preprocessing((12, 8)), torch.tensor([4, 2, 0, 1, 3])
    images = images_for(net)
    assert torch.equal(Teacher(net, same, same, order)(images), net(images)[:, order])


def test_parts_of_a_batch_add_up():
    student, teacher = trained(VITS["distilled"], 0), trained(VITS["token"], 1)
    learner = distilling(student, teacher, targets="soft")
    learner.distillation = replace(learner.distillation, temperature=3.0)
    images, labels = images_for(student, 6), torch.arange(6) % 5
    whole = learner(images, labels, np.arange(6))
    halves = [learner(images[s], labels[s], np.arange(6)[s]) for s in (slice(3), slice(3, 6))]
    torch.testing.assert_close(sum(halves) / 2, whole)
