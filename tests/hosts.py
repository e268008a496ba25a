"""Several hosts on one machine, with ssh servers: `ray up`, cut cables, lost power for real, by tests or by hand.

    sudo python tests/hosts.py up 3        three hosts, 10.78.0.2 to 10.78.0.4; prints the ssh key
    sudo python tests/hosts.py yaml 3 --runs /srv/runs > my.yaml    clusters/onprem.yaml filled in for them
    sudo python tests/hosts.py run 1 'ray status'     on host 1, the head, in the shell that `ray exec` would open
    sudo python tests/hosts.py cut 3       the network cable of host 3;  mend 3 plugs it in again
    sudo python tests/hosts.py kill 3      host 3 loses its power;       boot 3 switches it on again
    sudo python tests/hosts.py down        removes all that `up` made

Each host is a network namespace on a private bridge, with its own processes (so `ray stop` on a host ends nothing
elsewhere), its own /tmp/ray and /dev/shm, and its own home folder laid over the real one: it reads what is there, and
what it writes there stays with it until `down`. All else is this machine's: one environment and one checkout serve
every host. No packet leaves the machine. Needs root, Debian's iproute2, openssh-server and rsync.
"""

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

FOLDER = Path("/run/posegen-hosts")
NETWORK = "10.78.0"
BRIDGE = "brposegen"
ONPREM = Path(__file__).parent.parent / "clusters" / "onprem.yaml"
NEEDED = {"ip": "iproute2", "sshd": "openssh-server", "ssh-keygen": "openssh-client", "rsync": "rsync"}
SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def what_is_missing() -> str | None:
    """Why hosts cannot be made here, in words; None where they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "hosts are network namespaces, which need Linux and root"
    absent = [package for program, package in NEEDED.items() if not shutil.which(program, path=SBIN)]
    if absent:
        return f"hosts need {' '.join(absent)}: apt-get install -y {' '.join(absent)}"
    return None if _may_make_hosts() else "hosts are network namespaces with mounts, which this machine does not allow"


def _may_make_hosts() -> bool:
    """Makes a namespace with mounts of its own, and removes it."""
    name = f"posegentry{os.getpid()}"
    script = "unshare --mount --uts --pid --fork --mount-proc mount -t tmpfs tmpfs /dev/shm"
    try:
        _do("ip", "netns", "add", name)
        _do("ip", "netns", "exec", name, "bash", "-c", script)
    except (OSError, subprocess.CalledProcessError):
        return False
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, env={**os.environ, "PATH": SBIN})
    return True


class Hosts:
    """So many hosts, numbered from 1; host 1 is meant as the head. A context manager that leaves nothing behind.

    with Hosts(3) as hosts:
        hosts.run(1, "hostname")
        hosts.cut(3); hosts.mend(3); hosts.kill(3); hosts.boot(3)
    """

    key = FOLDER / "id"  # of the user root, on every host

    def __init__(self, count: int) -> None:
        self.addresses = [f"{NETWORK}.{number + 1}" for number in range(1, count + 1)]

    def __enter__(self) -> "Hosts":
        """Makes the hosts. RuntimeError where this machine cannot, or where hosts are up already."""
        if missing := what_is_missing():
            raise RuntimeError(missing)
        if FOLDER.exists():
            raise RuntimeError(f"{FOLDER} is there: hosts are up already. `python tests/hosts.py down` removes them.")
        try:
            self._make()
        except BaseException:
            remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        remove()

    def run(self, number: int, command: str, *, check: bool = True, timeout: float = 120) -> str:
        """What a command prints on a host, in a shell with that host's set-up, errors after the rest.

        subprocess.CalledProcessError where it fails and `check` is left on.
        """
        done = subprocess.run(
            [*self._ssh(number), f"bash -lc {shlex.quote(f'[ ! -f ~/.bashrc ] || . ~/.bashrc; {command}')}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            print(done.stdout, file=sys.stderr)
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout)
        return done.stdout

    def cut(self, number: int) -> None:
        """Pulls the host's network cable: it works on, and nobody hears it."""
        _do(*f"ip -n {_name(number)} link set eth0 down".split())

    def mend(self, number: int) -> None:
        """Plugs the cable in again."""
        _do(*f"ip -n {_name(number)} link set eth0 up".split())
        _do(*f"ip -n {_name(number)} route replace default via {NETWORK}.1".split())

    def kill(self, number: int) -> None:
        """Takes the host's power: every process on it dies at once."""
        _kill(_name(number))

    def boot(self, number: int) -> None:
        """Switches a host without power on; returns when its ssh server answers. Its home is as it was."""
        name = _name(number)
        home, mine = Path.home(), FOLDER / name
        for folder in (mine / "home", mine / "work"):
            folder.mkdir(parents=True, exist_ok=True)
        script = f"""
            hostname {name}
            mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray && mount -t tmpfs tmpfs /dev/shm &&
            mount -t overlay overlay -o lowerdir={home},upperdir={mine}/home,workdir={mine}/work {home} &&
            exec /usr/sbin/sshd -D -f /dev/null -h {FOLDER}/hostkey -o AuthorizedKeysFile={FOLDER}/id.pub \
                -o PermitRootLogin=prohibit-password -o StrictModes=no -o PidFile=none -o MaxStartups=100 \
                -o ListenAddress={self.addresses[number - 1]}"""
        own = "unshare --mount --uts --pid --fork --mount-proc bash -c"
        with (mine / "sshd.log").open("a") as log:
            command = ["ip", "netns", "exec", name, *own.split(), script]
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        _wait_for(lambda: subprocess.run([*self._ssh(number), "true"], capture_output=True).returncode == 0)

    def _make(self) -> None:
        FOLDER.mkdir(mode=0o700)
        Path("/run/sshd").mkdir(exist_ok=True)
        for name in ("id", "hostkey"):
            _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(FOLDER / name))
        _do(*f"ip link add {BRIDGE} type bridge".split())
        _do(*f"ip addr add {NETWORK}.1/24 dev {BRIDGE}".split())
        _do(*f"ip link set {BRIDGE} up".split())
        for number in range(1, len(self.addresses) + 1):
            self._connect(number)
            self.boot(number)

    def _connect(self, number: int) -> None:
        name = _name(number)
        subprocess.run(["ip", "link", "del", f"v{name}"], capture_output=True)  # of hosts that were here before
        _do(*f"ip netns add {name}".split())
        _do(*f"ip link add v{name} type veth peer name eth0 netns {name}".split())
        _do(*f"ip link set v{name} master {BRIDGE} up".split())
        _do(*f"ip -n {name} addr add {self.addresses[number - 1]}/24 dev eth0".split())
        _do(*f"ip -n {name} link set lo up".split())
        self.mend(number)

    def _ssh(self, number: int) -> list[str]:
        options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ConnectTimeout=5"
        return ["ssh", "-i", str(self.key), *options.split(), f"root@{self.addresses[number - 1]}"]


class Cluster:
    """A Ray cluster on hosts, brought up by `ray up` with clusters/onprem.yaml. A context manager that takes it down.

    with Hosts(3) as hosts, Cluster(hosts, tmp_path, runs=tmp_path / "runs") as cluster:
        cluster.exec("posegen doctor")

    `folder` holds the filled-in file and a home with the token for the launcher's side. `environment` are more
    variables for every process of the cluster.
    """

    def __init__(
        self, hosts: Hosts, folder: Path, *, runs: Path | str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.hosts, self.folder, self.file = hosts, folder, folder / "onprem.yaml"
        self.home = folder / "home"
        more = {"PYTHONPATH": str(ONPREM.parent.parent), "OMP_NUM_THREADS": "1", **(environment or {})}
        self._text = filled_in(hosts, runs=str(runs), environment=more)

    def __enter__(self) -> "Cluster":
        """`ray up`, and all hosts have joined. RuntimeError with what was printed where they do not."""
        (self.home / ".ray").mkdir(parents=True, exist_ok=True)
        self.file.write_text(self._text)
        self.ray("get-auth-token", "--generate")
        self.ray("up", str(self.file), "--no-config-cache", "-y")
        try:
            _wait_for(lambda: self.nodes() == len(self.hosts.addresses), seconds=180)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.ray("down", str(self.file), "-y")

    def ray(self, *words: str, timeout: float = 600) -> str:
        """What the `ray` command prints, as typed on the machine from which the cluster was launched."""
        environment = {**os.environ, "HOME": str(self.home), "RAY_TMPDIR": str(self.folder), "RAY_AUTH_MODE": "token"}
        done = subprocess.run(
            [str(Path(sys.executable).with_name("ray")), *words],
            cwd=ONPREM.parent.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        if done.returncode:
            raise RuntimeError(f"ray {' '.join(words)} failed ({done.returncode}):\n{done.stdout}")
        return done.stdout

    def exec(self, command: str, *, check: bool = True, timeout: float = 600) -> str:
        """What a command prints on the head, with the cluster's environment."""
        return self.hosts.run(1, command, check=check, timeout=timeout)

    def nodes(self) -> int:
        """How many hosts are in the cluster and alive, as the head sees it; 0 where it cannot be asked."""
        code = "from ray.util.state import list_nodes; print('alive', sum(n.state == 'ALIVE' for n in list_nodes()))"
        found = re.search(r"alive (\d+)", self.exec(f"python -W ignore -c {shlex.quote(code)}", check=False))
        return int(found[1]) if found else 0


def filled_in(hosts: Hosts, *, runs: str, mlflow: str = "", environment: Mapping[str, str] | None = None) -> str:
    """clusters/onprem.yaml for these hosts: addresses, user, key, this Python environment, run storage."""
    text = ONPREM.read_text()
    values = {"POSEGEN_RUNS": runs, "MLFLOW_TRACKING_URI": mlflow, "POSEGEN_ENVIRONMENT": sys.prefix}
    for name, value in values.items():
        if not value:
            text = text.replace(f"export {name}=", f"# export {name}=")
            continue
        text, count = re.subn(rf"(export {name}=).*", rf"\g<1>{value}", text)
        assert count == 1, f"{ONPREM} sets {name} {count} times"
    more = "".join(f"export {name}={shlex.quote(value)}\n    " for name, value in (environment or {}).items())
    text = text.replace("export POSEGEN_RUNS=", f"{more}export POSEGEN_RUNS=")
    config = yaml.safe_load(text)
    config["provider"].update(head_ip=hosts.addresses[0], worker_ips=hosts.addresses[1:])
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(hosts.key)}
    return yaml.safe_dump(config, sort_keys=False, width=1000)


def remove() -> None:
    """Removes every host, whoever made it."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    for name in re.findall(r"^(posegen\d+)", listed, re.MULTILINE):
        _kill(name)
        subprocess.run(["ip", "link", "del", f"v{name}"], capture_output=True)  # else it lingers for a while
        _do("ip", "netns", "del", name)
    subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True)
    shutil.rmtree(FOLDER, ignore_errors=True)


def _name(number: int) -> str:
    return f"posegen{number}"


def _kill(name: str) -> None:
    def pids() -> Sequence[str]:
        return subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()

    for pid in pids():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _wait_for(lambda: not pids())


def _wait_for(holds, *, seconds: float = 20) -> None:
    """TimeoutError where something does not come to hold."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s in vain")
        time.sleep(0.2)


def _do(*command: str) -> None:
    subprocess.run(command, check=True, env={**os.environ, "PATH": SBIN})


def main() -> None:
    """Hosts by hand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("up", "yaml", "run", "cut", "mend", "kill", "boot", "down"))
    parser.add_argument("number", type=int, nargs="?", help="how many hosts (up, yaml), or which one")
    parser.add_argument("command", nargs="?", help="for run")
    parser.add_argument("--runs", default="/srv/runs", help="for yaml: the folder or URI under which runs lie")
    given = parser.parse_args()
    number = given.number or 1
    hosts = Hosts(max(number, 1))
    if given.verb == "up":
        hosts.__enter__()
        print(f"ssh user root, key {hosts.key}", *hosts.addresses, sep="\n")
    elif given.verb == "yaml":
        print(filled_in(hosts, runs=given.runs), end="")
    elif given.verb == "down":
        remove()
    elif given.verb == "run":
        print(hosts.run(number, given.command or "true", check=False), end="")
    else:
        getattr(hosts, given.verb)(number)


if __name__ == "__main__":
    main()
