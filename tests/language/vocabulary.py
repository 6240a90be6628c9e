"""List the words that names and docstrings are checked against."""

from typing import Final

# Imperative verbs that may begin a function's name. A verb that is missing is added here; a noun never is.
VERBS: Final = frozenset(
    """
    abort accept accumulate acquire activate add adjust admit advance aggregate allocate allow analyze announce answer append
    apply approve archive arm ask assemble assert assign attach attempt audit authenticate authorize await back balance
    batch begin bind block bootstrap bound branch break broadcast buffer build bump bundle call cancel capture carry cast
    catch change charge check choose chunk claim clamp classify clean clear clone close coalesce coerce collapse collect
    combine commit compact compare compile complete compose compress compute concatenate configure confirm connect consume
    continue control convert copy correct count cover create cut deactivate debit decide declare decode decompress
    decorate decrypt deduplicate default defer define degrade delay delegate delete deliver demote deny depend deploy derive
    describe deserialize destroy detach detect determine diff digest disable discard disconnect discover dispatch display
    distribute divide do download drain draw drop dump duplicate edit elect embed emit empty enable encode encrypt end
    enforce enqueue ensure enter enumerate erase escape estimate evaluate evict examine exchange exclude execute exec exit
    expand expect expire explain export expose extend extract fail fall fetch fill filter finalize find finish fire fit fix
    flag flatten flush fold follow forbid force forget fork format forward free freeze gather generate get give grant group
    grow guard guess halt hand handle hash hide hold identify ignore import include increase increment index inherit
    initialize inject insert inspect install interpolate interpret interrupt intersect invalidate invite invoke isolate issue
    iterate join keep kill label launch lay lease leave limit link list listen load locate lock log login logout look lower make
    manage map mark mask match materialize measure mend merge migrate minimize mint modify monitor mount move multiply mute name
    narrow negotiate normalize note notify number observe obtain offer omit open order overlap override overwrite pack pad
    page park parse partition pass patch pause peek perform permit persist pick pin ping place plan poll pop populate post
    postpone prefer prefix preload prepare prepend present press prevent print probe proceed process produce promise promote
    prompt propagate protect prove provide prune publish pull purge push put qualify quantize query queue quit quote raise
    rank reach react read readmit rebind rebuild recall receive recognize reconcile reconnect record recover recreate redact
    redirect redo reduce refer refill refresh refuse register reject relay release reload remove rename render renew reopen
    repair repeat replace replay reply report represent reproduce request require requeue reschedule reseal reserve reset
    resize resolve respond rest restart restore restrict resume retain retire retract retrieve retry return reuse reveal
    reverse revert revise revoke rewind rewrite ring roll rotate round route run salvage sample save scale scan schedule scope
    score scrape screen seal search seed seek select send serialize serve set settle shape share shed shift shorten show
    shrink shut sign signal simplify simulate skip sleep slice slugify snapshot sort spawn specify spend spill split spool stage
    stamp start state step stop store stream strengthen strip submit subscribe substitute subtract suggest sum summarize
    supersede supervise supply suppress surrender suspend swap sweep switch synchronize tag tail take tally tell terminate
    test throttle tidy tighten tilt time toggle touch trace track transfer transform translate traverse treat trigger trim
    truncate try tune turn unbind unblock undo unescape unfold unfreeze unify uninstall unlink unlock unmount unpack unquote
    unregister unset unseal unshare unsubscribe unwind unwrap update upgrade upload upsert use validate verify view visit
    wait wake walk warm warn watch widen win wipe withdraw work wrap write yield zip
    adapt calculate contain loosen prefetch debug equip relocate weigh deduct drive encapsulate enrich inline memoize rate reap rebase recompute redeem rehash reissue relate sanitize scrub
    shield speed steer tokenize total unite vary vouch zero bill cache decrement defuse fingerprint gate instrument lint
    notice outline pace pretend quarantine react reassemble refund relax reparse rescan rescue retitle seat slow spool
    answer attribute author backfill checkpoint debounce enroll fan hydrate ingest intern
    """.split()  # noqa: SIM905
)
PREDICATES: Final = frozenset(
    [
        "contains",
        "matches",
        "is",
        "has",
        "have",
        "can",
        "should",
        "must",
        "needs",
        "are",
        "was",
        "were",
        "does",
        "may",
        "allows",
        "accepts",
        "supports",
        "exists",
    ]
)

# Irregular participles; the regular ones end in -ed.
PARTICIPLES: Final = frozenset(
    """
    told given taken held made known found kept gone begun sent said seen shown written spent sealed left lost bound broken
    brought built bought caught chosen come done drawn driven fed felt forgotten frozen gotten grown heard hidden hung laid
    led lent lit meant met paid proven risen rung sold spoken split sprung stood stolen struck stuck sung sworn taught thought
    thrown understood undone unbound won worn woven
    """.split()  # noqa: SIM905
) - {"split", "read", "put", "set", "cut", "run"}

PLACEHOLDERS: Final = frozenset("one found told known made given kept taken held said shown wanted".split())  # noqa: SIM905

# What a docstring may not begin with: it should begin with a verb.
NO_OPENING: Final = frozenset(
    """
    what whatever whether how where when who whom whose whoever which why the a an one two every each all any some those
    these this that there it its nothing nobody everything from for of in on at by with without as if no not only more
    most same both to between within under over after before
    """.split()  # noqa: SIM905
)

# Words that a reader stumbles over, with what to write instead.
WORDS: Final = {
    r"\bwho(m)?ever\b": "name the person or the process",
    r"\bnobody\b": "name who does not",
    r"\bwhatever\b": "say what",
    r"\b(is|are|was|be) told\b": "receives, is sent, is notified, is documented",
    r"\btold of\b": "notified of, recorded for",
    r"\bthere (is|are) none\b": "is missing, is empty, does not exist",
    r"\b(is|are|was|were) away\b": "is unavailable",
    r"\bcomes? to (nothing|an end|a|the)\b": "results in, ends, equals",
    r"\bthought up\b": "generated",
    r"\bfor ever\b": "without limit, never ends",
    r"\bhangs? together\b": "is consistent",
    r"\bstrangers?\b": "untrusted clients, other tenants",
    r"\bof its own accord\b": "automatically",
    r"\bas such\b": "leave it out",
    r"\bsuch (a|an|as)\b": "like, for example",
    r"\bsay(s)? so\b": "states this, reports this",
}
