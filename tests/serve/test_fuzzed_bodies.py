"""Whatever the body, there is an answer, and an error is the client's and in OpenAI's form."""

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serve.bodies import fault_of, request
from tests.serve.running import running

LIMITS = {
    "max_n": 1,
    "max_best_of": 2,
    "max_size": 64,
    "max_steps": 1,
    "max_previews": 1,
    "max_body_bytes": 100_000,
}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def server(whole_model):
    with running(whole_model, **LIMITS) as found:
        yield found


def test_odd_bodies(server):
    with httpx.Client(base_url=server.url, timeout=120) as client:
        answers = {}
        for number in range(150):
            one = request(number)
            got = client.post(
                one.path, content=one.content, headers={"Content-Type": one.content_type.encode()}
            )
            answers[number] = got.status_code
            fault = fault_of(got.status_code, got.headers.get("content-type", ""), got.content)
            assert fault is None, (number, one, fault)
        assert {200, 400} <= set(answers.values())
        assert client.get("/readyz").status_code == 200


def test_the_api_is_as_its_openapi_says(server):
    api = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    seen = []
    for result in api.get_all_operations():
        operation = result.ok()
        seen.append(operation.path)

        @seed(0)
        @settings(
            max_examples=8,
            deadline=None,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def check(case):
            case.call_and_validate(checks=CHECKS, timeout=120)

        check()
    assert {"/v1/images/generations", "/v1/images/edits", "/v1/chat/completions", "/metrics"} <= set(seen)
