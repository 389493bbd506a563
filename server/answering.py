"""Answering a question about a document: authorise, choose the mode and the KE, retrieve, build the prompt,
resolve the adapter, generate."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace

from starlette.concurrency import run_in_threadpool

from km_registry.errors import ConflictError
from km_registry.prompts import answer_messages, encode, passages_context
from km_registry.registry import Registry
from km_registry.types import KM, Action, Document, Principal
from server.adapters import Adapters
from server.config import ServerSettings
from server.engine.base import Adapter, Engine, Generation, GenerationRequest, joined
from server.errors import InvalidRequestError, NotTrainedError, PromptTooLongError
from server.generating import Generating
from server.in_flight import InFlight
from server.kes import NO_KE, KEChoice, KEs
from server.kms import KMs
from server.modes import Choice, Mode
from server.questions import Answer, Question
from server.retrieval.base import Passage, RetrievalUnavailableError
from server.retrieval.retriever import Retriever
from server.revocations import claim_of
from server.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a question is answered: by which mode, with which KM, KE and passages."""

    choice: Choice
    km: KM | None = None
    ke: KEChoice = NO_KE
    passages: tuple[Passage, ...] = ()

    @property
    def mode(self) -> Mode:
        return self.choice.mode

    def read(self, document: Document) -> int:
        """The version that the answer is from: what is in the prompt, if the KM knows an older one."""
        return document.version if self.km is None or self.passages else self.km.version


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question that may be answered, and how: `request` is what the engine is asked."""

    question: Question
    document: Document
    plan: _Plan
    request: GenerationRequest
    began: float


class Answerer:
    """Answers questions. One for each server."""

    def __init__(
        self,
        registry: Registry,
        kms: KMs,
        kes: KEs,
        composites: Adapters,
        engine: Engine,
        generating: Generating,
        tokenizer: Tokenizer,
        settings: ServerSettings,
        in_flight: InFlight,
        retriever: Retriever,
    ) -> None:
        self._registry = registry
        self._kms = kms
        self._kes = kes
        self._composites = composites
        self._engine = engine
        self._generating = generating
        self._tokenizer = tokenizer
        self._settings = settings
        self._in_flight = in_flight
        self._retriever = retriever

    async def answer(self, principal: Principal, question: Question) -> Answer:
        """Answer one question. Cancelling the awaiting task aborts the generation.

        Raises NotFoundError, NotTrainedError, InvalidRequestError, UnknownKEError, NoKEError,
        PromptTooLongError, RetrievalUnavailableError or EngineUnavailableError.
        """
        async with self._asked(principal, question) as asked:
            (generation,) = await self._generating.whole(asked.plan.mode, [asked.request])
            return await self._answered(asked, generation)

    async def stream(self, principal: Principal, question: Question) -> AsyncGenerator[str | Answer, None]:
        """The same, piece by piece: the answer's text as it comes, then the answer.

        Raises like `answer`; closing it aborts the generation.
        """
        async with self._asked(principal, question) as asked:
            deltas = []
            pieces = self._generating.pieces(asked.plan.mode, [asked.request])
            async with aclosing(pieces):
                async for _, delta in pieces:
                    deltas.append(delta)
                    if delta.text:
                        yield delta.text
            yield await self._answered(asked, joined(asked.request, deltas))

    @asynccontextmanager
    async def _asked(self, principal: Principal, question: Question) -> AsyncIterator[_Asked]:
        """How the question is answered; while the block runs its document is not deleted."""
        began = time.perf_counter()
        self._check(question)
        with self._in_flight.answering(question.document_id):
            # First of all: nothing is looked at, let alone retrieved, for whom it is not there.
            document, planned = await run_in_threadpool(self._begun, principal, question)
            plan = await self._retrieved(document, question, planned)
            prompt = await run_in_threadpool(self._prompt, document, question, plan)
            async with self._composites.plugged(plan.km, plan.ke.ke) as adapter:
                request = self._request(principal, document, question, plan, prompt, adapter)
                yield _Asked(question, document, plan, request, began)

    async def _answered(self, asked: _Asked, generation: Generation) -> Answer:
        plan = asked.plan
        warning = await run_in_threadpool(self._warning, asked.document, plan)
        return Answer(
            answer=generation.text.strip(),
            mode=plan.mode,
            asked_mode=asked.question.mode,
            why=plan.choice.why,
            document_id=asked.document.id,
            km_id=plan.km.id if plan.km else None,
            ke_id=plan.ke.ke.id if plan.ke.ke else None,
            ke_name=plan.ke.ke.name if plan.ke.ke else None,
            why_ke=plan.ke.why,
            version=plan.read(asked.document),
            passages=plan.passages,
            warning=warning,
            prompt_tokens=generation.prompt_tokens,
            completion_tokens=len(generation.token_ids),
            finish_reason=generation.finish_reason,
            milliseconds=round((time.perf_counter() - asked.began) * 1000, 1),
        )

    def _check(self, question: Question) -> None:
        most_chars, most_tokens = self._settings.max_question_chars, self._settings.max_answer_tokens
        if not question.question.strip():
            raise InvalidRequestError("question: it is empty. Write what you want to know.", param="question")
        if len(question.question) > most_chars:
            raise InvalidRequestError(
                f"question: it has {len(question.question)} characters, and at most {most_chars} are taken. "
                "Shorten it.",
                param="question",
            )
        if question.max_tokens > most_tokens:
            raise InvalidRequestError(
                f"max_tokens: {question.max_tokens} is more than this server gives. Ask for at most "
                f"{most_tokens}.",
                param="max_tokens",
            )
        if question.k is not None and question.mode is not Mode.AUTO and not question.mode.uses_passages:
            raise InvalidRequestError(
                f"k: mode {question.mode} puts no passages into the prompt. Leave k out, or ask with mode "
                "rag, km+rag or auto.",
                param="k",
            )

    def _begun(self, principal: Principal, question: Question) -> tuple[Document, _Plan]:
        """The document, which the principal may ask, and the plan for it. Blocking."""
        document = self._registry.get_document(principal, question.document_id, Action.ASK)
        return document, self._planned(document, question)

    def _planned(self, document: Document, question: Question) -> _Plan:
        """The mode, its KM and its KE. Blocking.

        NotTrainedError when the mode that was asked for needs a KM; UnknownKEError or NoKEError when the KE
        that was asked for is not there.
        """
        auto = question.mode is Mode.AUTO
        plan = self._automatic(document) if auto else self._asked_for(document, question.mode)
        return replace(plan, ke=self._kes.choose(question.ke, plan.mode, auto=auto))

    def _asked_for(self, document: Document, mode: Mode) -> _Plan:
        return _Plan(Choice(mode, "it was asked for"), self._kms.of(document.id) if mode.uses_km else None)

    def _automatic(self, document: Document) -> _Plan:
        policy = self._settings.auto_policy
        try:
            km = self._kms.of(document.id)
        except NotTrainedError:
            return _Plan(policy.choose(no_km="the document's KM is not trained yet"))
        except ConflictError:
            return _Plan(policy.choose(no_km="the document's KM is for another base model"))
        if km.version != document.version:
            return _Plan(policy.choose(no_km="the document's KM knows an older version of it"))
        choice = policy.choose(no_km=None)
        return _Plan(choice, km if choice.mode.uses_km else None)

    async def _retrieved(self, document: Document, question: Question, plan: _Plan) -> _Plan:
        """The plan with its passages. For `auto` the plan without them, when they cannot be had."""
        if not plan.mode.uses_passages:
            return plan
        k = question.k or self._settings.effective_passages_per_answer
        try:
            found = await self._retriever.search(document.id, question.question, k, version=document.version)
        except RetrievalUnavailableError:
            if question.mode is not Mode.AUTO:
                raise
            return replace(plan, choice=plan.choice.without_passages())
        if question.k is not None and question.k > found.of:
            raise InvalidRequestError(
                f"k: the document has {found.of} passages, and {question.k} were asked for. Ask for at most "
                f"{found.of}.",
                param="k",
            )
        return replace(plan, passages=found.passages)

    def _prompt(self, document: Document, question: Question, plan: _Plan) -> tuple[int, ...]:
        context = None
        remedy = "Shorten the question or lower max_tokens."
        if plan.mode is Mode.ICL:
            # Of this version, although a newer one may have come: it is kept while we are in flight.
            context = self._registry.read_text(document.id, document.version)
            remedy = "Ask with mode km, whose prompt is only the question, or with mode rag."
        elif plan.mode.uses_passages:
            context = passages_context([passage.text for passage in plan.passages])
            remedy = "Ask for fewer passages (k), or lower max_tokens."
        messages = answer_messages(question.question, title=document.title, context=context)
        prompt = tuple(encode(self._tokenizer, messages))
        ensure_fits(len(prompt), question.max_tokens, self._engine.max_model_len, remedy=remedy)
        return prompt

    def _warning(self, document: Document, plan: _Plan) -> str | None:
        """What to beware of in the answer. Blocking."""
        of_ke = self._kes.warning(plan.ke.ke) if plan.ke.ke else None
        return " ".join(filter(None, (self._warning_of_km(document, plan), of_ke))) or None

    def _warning_of_km(self, document: Document, plan: _Plan) -> str | None:
        if plan.km is None:
            return None
        if plan.passages and plan.km.version != document.version:
            return (
                f"The passages are of version {document.version} of the document, and its KM knows version "
                f"{plan.km.version}. Mode auto leaves it out until the newer one's is trained."
            )
        return self._kms.warning(plan.km)

    def _request(
        self,
        principal: Principal,
        document: Document,
        question: Question,
        plan: _Plan,
        prompt: tuple[int, ...],
        adapter: Adapter | None,
    ) -> GenerationRequest:
        return GenerationRequest(
            prompt_token_ids=prompt,
            max_tokens=question.max_tokens,
            temperature=question.temperature,
            seed=question.seed,
            caller=principal.user_id,
            claim=claim_of(principal, Action.ASK, document.id),
            adapter=adapter,
            cache_salt=principal.user_id
            if plan.mode is Mode.BASE
            else version_salt(document.id, plan.read(document)),
        )


def ensure_fits(prompt_tokens: int, max_tokens: int, limit: int, *, remedy: str) -> None:
    """PromptTooLongError, with the numbers and the remedy, unless prompt and completion fit together."""
    if prompt_tokens + max_tokens > limit:
        raise PromptTooLongError(
            f"The prompt has {prompt_tokens} tokens, and at most {max(0, limit - max_tokens)} fit beside the "
            f"{max_tokens} that may be written (the model reads {limit} in all). {remedy}"
        )


def version_salt(document_id: str, version: int) -> str:
    """What keeps the cached prefixes of a version apart: what was read of one is never used for another."""
    return f"{document_id}:{version}"
