"""Scratch."""
import asyncio, json, os, time
import pytest
from websockets.asyncio.client import connect
from scripts.up import System
from tests.clients import Tenant
from tests.modelled import agent, events, fresh, model, run, said, start, until
from tests.wire import Asked, Wire, call, Answer

PRICE = {"input": 1000.0, "output": 1000.0}

async def test_surrogate_in_error(acme, provider, system):
    name = await model(acme, provider, fresh())
    made = await agent(acme, name)
    provider.fail(500, message="broken \ud83d text", to=name)
    provider.say("Fine", to=name)
    print(await run(acme, made["id"], task="Go", timeout=15))
    provider.say("Fine", to=name)
    print(await run(acme, made["id"], task="Go", timeout=15))
    provider.fail(400, message="broken \ud83d text", to=name)
    print(await run(acme, made["id"], task="Go", timeout=15))
    provider.fail(400, message="broken \0 text", to=name)
    print(await run(acme, made["id"], task="Go", timeout=15))

async def test_nul_names(acme, provider, system):
    name = await model(acme, provider, fresh())
    made = await agent(acme, name, tools=["filesystem_write", "python"])
    for c in (call("bad\0name", {}), call("filesystem_write", {"path": "a\0b", "content": "x\0"}), call("filesystem_write", {"path": "ab", "content": "x\0"}, id="id\0"), call("python", {"code": "print('\\0\\ud800')"}),
              call("python", {"code": "import sys; sys.modules['__main__']; import os; open(b'/tmp/workspace/\\xff\\xfe','w').write('x')"}),
              call("python", {"code": "import sys, json\nf=sys._getframe()\nwhile f: \n  f.f_globals['_changed']=lambda b: ([1,2], 5)\n  f=f.f_back"}),
              call("python", {"code": "import sys, json\nf=sys._getframe()\nwhile f: \n  f.f_globals['_changed']=lambda b: ({'../x': 'YQ=='}, 5)\n  f=f.f_back"}),
              ):
        provider.say("", calls=[c], to=name)
        provider.say("done", to=name)
        ended = await run(acme, made["id"], task="Go", mode="yolo", timeout=15)
        print("\n", c, ended["status"], ended["error_type"], ended["error_message"], ended["result"])
        for one in await events(acme, ended["id"]):
            if one["type"] == "tool_result": print(one)
    a = await acme.http.get(f"/logs/{made['id']}")
    print(a.status_code, a.text[:500])

async def test_ws_after(acme, provider, system):
    name = await model(acme, provider, fresh())
    made = await agent(acme, name)
    provider.say("done", to=name)
    ended = await run(acme, made["id"], task="Go", mode="yolo", timeout=15)
    url = str(acme.http.base_url).replace("http", "ws").rstrip("/") + f"/agents/{made['id']}/stream"
    async with connect(url, additional_headers={"X-API-Key": await acme.key()}) as ws:
        await ws.send(json.dumps({"execution_id": ended["id"], "after": 2**31}))
        try:
            print(await ws.recv())
            print(await ws.recv())
        except Exception as e: print(repr(e))
    for body in ({"task":"a","model":"x\0"}, {"task":"a\0"}, {"inputs": {"a": "\0"}}):
        provider.say("done", to=name)
        r = await acme.http.post(f"/agents/{made['id']}/execute", json=body); print(r.status_code, r.text[:300])

async def test_redos(acme, provider, system):
    body = {"name": fresh("t"), "configuration": {"api_endpoint": "http://127.0.0.1:9/x", "parameters": {"type": "object", "properties": {"q": {"type": "string", "pattern": "^(a+)+$"}, "n": {"type": 5}}}}}
    r = await acme.http.post("/tools", json=body); print(r.status_code, r.text[:300])
    r2 = await acme.http.post(f"/tools/{r.json()['id']}/execute", json={"args": {"n": 1}}); print(r2.status_code, r2.text[:300])
    name = await model(acme, provider, fresh())
    made = await agent(acme, name)
    task = asyncio.create_task(acme.http.post(f"/tools/{r.json()['id']}/execute", json={"args": {"q": "a"*28+"b"}}, timeout=100))
    await asyncio.sleep(0.3)
    provider.say("done", to=name)
    t = time.time()
    print((await run(acme, made["id"], task="Go"))["status"], time.time()-t)
    r2 = await task; print(r2.status_code, r2.text[:300], time.time()-t)

async def test_anthropic(acme, provider, system):
    name = fresh()
    await acme.http.post("/provider-keys", json={"provider":"anthropic","name":"anthropic","key":"k"*20})
    r = await acme.http.post("/models", json={"name": name, "provider": "anthropic", "model": name, "base_url": provider.root}); print(r.status_code, r.text[:300])
    made = await agent(acme, name)
    provider.queue(Answer(tokens=["a \ud83d", "b\0 \ude00"]), name)
    e = await run(acme, made["id"], task="Go", timeout=15); print(e["status"], e["error_message"], e["result"])

async def test_calls(acme, provider, system):
    name = await model(acme, provider, fresh(), price=PRICE)
    made = await agent(acme, name, tools=["filesystem_write", "python"])
    provider.say("", calls=[call("nope", {"x": "y"*10000}) for _ in range(300)], to=name)
    provider.say("done", to=name)
    t=time.time()
    e = await run(acme, made["id"], task="Go", timeout=25, mode="yolo"); print(e["status"], e["error_message"], e["result"], time.time()-t)
    # twice the same id
    provider.say("", calls=[call("filesystem_write", {"path": "a", "content": "x"}, id="c0"), call("filesystem_write", {"path": "b", "content": "x"}, id="c0")], to=name)
    provider.say("done", to=name)
    i = await start(acme, made["id"], task="Go")
    w = await until(acme, i, "waiting"); print(w["waiting_for"])
    r = await acme.http.post(f"/executions/{i}/approve", json={"call_id": w["waiting_for"][0]["call_id"]}); print(r.status_code, r.json()["waiting_for"])
    r = await acme.http.post(f"/executions/{i}/reject", json={"reason": "no"}); print(r.status_code, r.json()["waiting_for"])
    e = await until(acme, i, "completed"); print((await acme.http.get(f"/executions/{i}/files")).json())
    provider.say("", calls=[call("filesystem_write", {"path": "a", "content": "x"}), call("filesystem_write", {"path": "a/b", "content": "x"})], to=name)
    provider.say("", calls=[call("python", {"code": "print(open('a').read())"})], to=name)
    provider.say("done", to=name)
    e = await run(acme, made["id"], task="Go", timeout=25, mode="yolo")
    for one in await events(acme, e["id"]):
        if one["type"] == "tool_result": print(one)


async def test_big(acme, provider, system):
    name = await model(acme, provider, fresh(), price=PRICE)
    made = await agent(acme, name, tools=["filesystem_write", "python"])
    for n, size in ((60, 100000), (3000, 1000), (90, 100000)):
        provider.say("", calls=[call("nope", {"x": "y"*size}) for _ in range(n)], to=name)
        provider.say("done", to=name)
        t=time.time()
        e = await run(acme, made["id"], task="Go", timeout=25, mode="yolo"); print(n, size, e["status"], e["error_message"], e["result"], time.time()-t)
        provider.reset()
