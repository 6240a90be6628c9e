import asyncio, json, time, random
from tests.modelled import agent, events, fresh, model, run, said, start, until
from tests.wire import call, Answer

async def test_delegated(acme, provider, system):
    boss_m = await model(acme, provider, fresh("boss")); sub_m = await model(acme, provider, fresh("sub"))
    sub = await agent(acme, sub_m, tools=["filesystem_write"])
    boss = await agent(acme, boss_m, tools=["filesystem_write"], allow_delegation=True)
    w = lambda p: call("filesystem_write", {"path": p, "content": "x", "append": True})
    provider.say("", calls=[w("b1"), call("delegate", {"agent": sub["name"], "task": "do"}), w("b2")], to=boss_m)
    provider.say("boss done", to=boss_m)
    provider.say("", calls=[w("s1"), w("s2")], to=sub_m)
    provider.say("sub done", to=sub_m)
    i = await start(acme, boss["id"], task="Go")
    n = 0
    while True:
        for _ in range(200):
            e = (await acme.http.get(f"/executions/{i}")).json()
            if e["status"] in ("waiting", "completed", "failed"): break
            await asyncio.sleep(0.05)
        print(e["status"], e["error_message"], e["attempt"], [c["path"] for c in e["waiting_for"] or []])
        if e["status"] != "waiting": break
        rs = await asyncio.gather(*(acme.http.post(f"/executions/{i}/approve", json={"call_id": c["call_id"]}) for c in e["waiting_for"] for _ in range(2)))
        print([r.status_code for r in rs])
    print(e["result"], (await acme.http.get(f"/executions/{i}/files")).json()["items"])
    told = await events(acme, i)
    assert [o["seq"] for o in told] == list(range(1, len(told)+1))
    print([(o["type"], o.get("step") or o.get("status")) for o in told])

async def test_race(acme, provider, rival):
    m = await model(acme, provider, fresh()); a = await agent(acme, m, tools=["filesystem_write"])
    for n in range(12):
        provider.say("", calls=[call("filesystem_write", {"path": "x", "content": "x"})], to=m)
        provider.say("done", to=m)
        i = await start(acme, a["id"], task="Go"); await until(acme, i, "waiting")
        ops = ["approve", "reject", "cancel"]; random.shuffle(ops)
        rs = await asyncio.gather(*(acme.http.post(f"/executions/{i}/{op}", json={} if op != "cancel" else None) for op in ops))
        for _ in range(100):
            e = (await acme.http.get(f"/executions/{i}")).json()
            if e["status"] in ("completed", "failed", "cancelled"): break
            await asyncio.sleep(0.05)
        told = await events(acme, i)
        assert [o["seq"] for o in told] == list(range(1, len(told)+1))
        print(ops, [r.status_code for r in rs], e["status"], told[-1]["status"])
        provider.reset()
    for method, path, body in (("POST", f"/executions/{i}/approve", {}), ("POST", f"/executions/{i}/reject", {}), ("GET", f"/executions/{i}/files", None), ("GET", f"/executions/{i}/files/x", None), ("GET", f"/executions/{i}/events", None), ("POST", "/tools/filesystem_list/execute", {"execution_id": i}), ("POST", "/agents", {"name": "q", "parent": a["id"]}), ("POST", "/agents", {"name": "q", "model": m}), ("POST", f"/executions/{i}/retry", None)):
        r = await rival.http.request(method, path, json=body); print(method, path[-30:], r.status_code, r.json().get("detail"))
    r = await acme.http.post("/tools/filesystem_write/execute", json={"args": {"path": "p/ä <b>.html", "content": "<script>"}}); print(r.json())
    r = await acme.http.get(f"/executions/{r.json()['execution_id']}/files/p/%C3%A4%20%3Cb%3E.html"); print(r.status_code, r.headers, r.text)
    mc = await rival.http.post("/provider-keys", json={"provider":"custom","name":"kk","key":"k"*20}); print(mc.status_code, mc.text[:200])
    t = await rival.http.post("/tools", json={"name": "mm", "tool_type": "mcp", "configuration": {"url": "http://127.0.0.1:9/", "secrets": {"x-a": "kk"}}}); print(t.status_code, t.text[:100])
    d = await rival.http.delete("/provider-keys/kk"); print(d.status_code, d.text[:200])
    m2 = await model(rival, provider, fresh()); a2 = await agent(rival, m2, tools=["mm"])
    provider.say("ok", to=m2)
    e = await run(rival, a2["id"], task="go"); print(e["status"], e["error_message"], e["result"])
