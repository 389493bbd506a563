"""Teacher and student token sequences for one target, with the alignment that distillation stands on.

The teacher reads (context, instruction), the student the instruction alone; both are followed by the same
target. Distilled are exactly the positions that predict target tokens: the last prompt position predicts
the first target token, and the last target token is an answer only, never an input.
"""

from __future__ import annotations

from dataclasses import dataclass

from km_registry.prompts import ChatTokenizer, encode, instruction_messages


@dataclass(frozen=True, slots=True)
class Sample:
    """A synthetic text about a chunk: what the model is told to do, and what it wrote.

    `question` True marks an instruction that is asked in the format of /answer.
    """

    kind: str
    chunk: int
    instruction: str
    target: str


@dataclass(frozen=True, slots=True)
class Example:
    """One sample as token ids."""

    kind: str
    chunk: int
    teacher_prompt: tuple[int, ...]
    student_prompt: tuple[int, ...]
    target: tuple[int, ...]

    @property
    def student_input(self) -> tuple[int, ...]:
        """What the student reads: all but the last target token."""
        return self.student_prompt + self.target[:-1]

    @property
    def teacher_input(self) -> tuple[int, ...]:
        """What the teacher reads: all but the last target token."""
        return self.teacher_prompt + self.target[:-1]

    @property
    def student_positions(self) -> range:
        """Positions of `student_input` that predict target tokens; as many as there are targets."""
        return range(len(self.student_prompt) - 1, len(self.student_input))

    @property
    def teacher_positions(self) -> range:
        """Positions of `teacher_input` that predict target tokens; as many as there are targets."""
        return range(len(self.teacher_prompt) - 1, len(self.teacher_input))


def build_example(
    tokenizer: ChatTokenizer, sample: Sample, *, chunk_text: str, title: str, end_id: int, max_target: int
) -> Example:
    """The sample as token ids; the target ends with the end-of-turn token unless it had to be cut.

    Raises:
        ValueError: the target is empty.
    """
    target = tokenizer.encode(sample.target.strip(), add_special_tokens=False)
    if not target:
        raise ValueError(f"sample of kind {sample.kind} has an empty target")
    complete = len(target) < max_target
    target = [*target, end_id] if complete else target[:max_target]
    with_chunk = instruction_messages(sample.instruction, context=chunk_text, title=title)
    return Example(
        kind=sample.kind,
        chunk=sample.chunk,
        teacher_prompt=tuple(encode(tokenizer, with_chunk)),
        student_prompt=tuple(encode(tokenizer, instruction_messages(sample.instruction))),
        target=tuple(target),
    )
