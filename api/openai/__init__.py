"""Serve agents, crews and workflows behind OpenAI's wire, below `/v1`: its clients work unchanged.

Requests are parsed and answers rendered by `infra.wires`, which the gateway of the sandbox uses too.
"""

from litestar import Router

from api.openai.chat import complete_chat, get_answering_model, list_answering_models
from api.openai.conversations import (
    create_conversation,
    delete_conversation,
    get_conversation,
    update_conversation,
)
from api.openai.responses import cancel_response, create_response, delete_response, get_response
from api.openai.sender import AnswerSender
from api.openai_errors import OPENAI_PREFIX, on_wire_refusal
from infra.wires.common import WireRefusal

router = Router(
    OPENAI_PREFIX,
    route_handlers=[
        list_answering_models,
        get_answering_model,
        complete_chat,
        create_response,
        get_response,
        cancel_response,
        delete_response,
        create_conversation,
        get_conversation,
        update_conversation,
        delete_conversation,
    ],
    exception_handlers={WireRefusal: on_wire_refusal},
    include_in_schema=False,
)

__all__ = ["AnswerSender", "router"]
