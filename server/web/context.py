"""What the page's routes share: its templates, its assets and its sessions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from server.web import wording
from server.web.assets import Asset
from server.web.assets import load as load_assets
from server.web.sessions import Sessions


@cache
def _environment() -> Environment:
    known = load_assets()
    made = Environment(
        loader=PackageLoader("server.web"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["asset"] = lambda name: f"/ui/static/{name}?v={known[name].digest}"
    made.filters |= {
        "size": wording.size,
        "percent": wording.percent,
        "moment": wording.moment,
        "iso": datetime.isoformat,
        "mode_name": wording.mode_name,
        "seconds": wording.seconds,
        "ago": wording.ago,
        "milliseconds": wording.milliseconds,
        "number": wording.number,
    }
    return made


@dataclass(frozen=True, slots=True)
class Web:
    """Templates, assets and sessions of one server's page."""

    sessions: Sessions
    assets: Mapping[str, Asset] = field(default_factory=load_assets)
    templates: Environment = field(default_factory=_environment)

    def html(self, template: str, **values: Any) -> str:
        """A template, filled in."""
        return self.templates.get_template(template).render(**values)

    def page(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """The same as a response."""
        return HTMLResponse(self.html(template, **values), status_code=status)


async def _web(request: Request) -> Web:
    web: Web = request.app.state.web
    return web


WebDep = Annotated[Web, Depends(_web)]
