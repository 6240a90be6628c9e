"""List every attack with the guards that hold it."""

# attack → the guards it takes to be gone
ATTACKS: dict[str, list[str]] = {
    "host_files": ["root"],
    "host_packages": ["packages"],
    "other_versions": ["root"],
    "write_outside": ["read_only"],
    "worker_environment": ["environment"],
    "inherited_descriptors": ["descriptors"],
    "host_tcp": ["network", "seccomp"],
    "host_abstract_socket": ["network", "seccomp"],
    "any_socket": ["seccomp"],
    "keyring": ["seccomp"],
    "forbidden_calls": ["seccomp"],
    "nested_namespaces": ["seccomp", "userns"],
    "ptrace": ["seccomp"],
    "siblings_limits": ["seccomp"],
    "other_processes": ["processes"],
    "capabilities": ["capabilities"],
    "kernel_settings": ["proc_masks"],
    "shared_ipc": ["ipc"],
    "shared_session": ["session"],
    "root_only_file": ["uid"],
    "fork_bomb": ["limits"],
    "thread_bomb": ["limits"],
    "memory_of_one": ["limits", "watch", "cgroup"],
    "memory_shared": ["watch", "seccomp", "cgroup"],
    "memory_of_many": ["watch", "cgroup"],
    "memory_of_the_kernel": ["cgroup", "seccomp"],
    "memory_of_many_sockets": ["cgroup"],
    "memory_of_ended_threads": ["watch", "cgroup"],
    "memory_of_hoppers": ["watch", "cgroup"],
    "memory_not_to_be_dumped": ["watch", "cgroup"],
    "limits_of_its_own": ["limits"],
    "disk": ["tmp_size"],
    "disk_of_work": ["tmp_size"],
    "inodes": ["watch"],
    "inodes_of_work": ["watch"],
    "inodes_of_an_ended_thread": ["watch"],
    "terminals": ["terminals"],
    "calls_for_the_whole_host": ["seccomp"],
    "processors": ["cpu"],
    "daemon": ["processes"],
    "stubborn": ["processes"],
}
# The same for programs with a gateway, besides the ones above. What `manifest` and `words` are: `runner.GATEWAY_GUARDS`.
GATEWAY_ATTACKS: dict[str, list[str]] = {
    "gateway_host": ["network"],
    "gateway_sockets": ["seccomp"],
    "gateway_unix": ["seccomp"],
    "gateway_others": ["network"],
    "gateway_models": ["manifest"],
    "gateway_words": ["words"],
    "gateway_key": ["environment"],
    "gateway_memory": ["watch", "cgroup"],
}
# The same for programs with declared hosts. What `admission` and `declaration` are: `runner.GATEWAY_GUARDS`.
EGRESS_ATTACKS: dict[str, list[str]] = {
    "egress_undeclared": ["network"],
    "egress_scan": ["network"],
    "egress_others": ["seccomp"],
    "egress_private": ["admission"],
    "egress_proxy": ["declaration", "admission"],
}
# A gateway is asked through a socket.
NOT_WITH_A_GATEWAY = {"any_socket"}
# An ordinary user's sandbox has that user's id on the host: it owns its own files, and root's stay closed to it.
ROOT_ONLY = {"root_only_file"}
# What the kernel holds for a tree is bounded by control groups alone, which an ordinary user may not be given.
NEEDS_GROUPS = {"memory_of_many_sockets"}
# A timeout kills the first process of a sandbox by itself, namespace or not; the daemon shows what the namespace adds.
ALWAYS_HELD = {"stubborn"}
