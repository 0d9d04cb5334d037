"""A vetting as SARIF 2.1.0, the format in which code scanners report to GitHub and others."""

import re
from pathlib import PurePath
from typing import Any

from clipvet.scan.vetting import GIVEN, Stage, Vetting

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
# outcome -> (kind, level), in SARIF's words; a level other than none needs the kind fail
KINDS = {
    "fail": ("fail", "error"),
    "undecided": ("fail", "warning"),
    "not_tested": ("notApplicable", "none"),
    "pass": ("pass", "none"),
}
RULES = {
    "files": "The model's files hold no code.",
    "prompts": "The learned prompts hide no backdoor.",
    "encoder": "The picture tower hides no backdoor.",
    "text": "The text tower hides no backdoor.",
    "reference": "The model behaves as the clean model that it was made from.",
    "pairs": "The pairs hold no poison.",
    "accuracy": "The model does its task.",
    "advice": "The model can be used.",
}


def sarif(found: Vetting) -> dict[str, Any]:
    """One run with a result for each test of the given model, and one for the advice."""
    stages = [s for s in found.stages if s.of == GIVEN and s.outcome in KINDS and s.name in RULES]
    level = "none" if found.advice == "use" else "warning" if found.advice == "undecided" else "error"
    advice = _result("advice", "pass" if level == "none" else "fail", level, found.sentence, found.model, [])
    rules = [{"id": name, "shortDescription": {"text": text}} for name, text in RULES.items()]
    driver = {"name": "clipvet", "version": found.versions["clipvet"], "rules": rules}
    done = {"executionSuccessful": True, "exitCode": found.exit_code, "commandLine": found.command}
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": driver},
                "invocations": [done],
                "results": [*(_of(s, found.model) for s in stages), advice],
            }
        ],
    }


def _of(stage: Stage, model: str) -> dict[str, Any]:
    kind, level = KINDS[stage.outcome]
    return _result(stage.name, kind, level, " ".join([f"{stage.title}: {stage.said}", *stage.more]), model, stage.files)


def _result(rule: str, kind: str, level: str, text: str, model: str, files: list[str]) -> dict[str, Any]:
    places = [_place(model, f) for f in files] or [_place(model)]
    said = {"ruleId": rule, "ruleIndex": [*RULES].index(rule), "kind": kind, "level": level, "message": {"text": text}}
    return {**said, "locations": places}


def _place(model: str, file: str = "") -> dict[str, Any]:
    """Where the model lies. A file of a model that is one file is that file itself."""
    path = PurePath(model.removeprefix("local-dir:").removeprefix("transformers:"))
    whole = path / file if file and path.name != file else path
    uri = re.sub(r"[^\w./~:@-]", lambda m: "".join(f"%{b:02X}" for b in m[0].encode()), whole.as_posix())
    return {"physicalLocation": {"artifactLocation": {"uri": uri}}}
