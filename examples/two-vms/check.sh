#!/usr/bin/env bash
# Plays the story of README.md on one machine and prints PASS or FAIL for each thing it promises.
# Needs root, `gossamer` in the path, and the Debian packages iproute2, nftables, bind9-dnsutils, netcat-openbsd,
# postgresql and python3. Leaves nothing behind: everything lives in three network namespaces and one directory.
set -euo pipefail
exec </dev/null

[ "$(id -u)" = 0 ] || { echo "two-vms: network namespaces need root" >&2; exit 1; }
for tool in gossamer ip nft dig nc psql python3 setpriv; do
    command -v "$tool" >/dev/null || { echo "two-vms: $tool is not installed" >&2; exit 1; }
done
postgres=$(find /usr/lib/postgresql/*/bin/postgres 2>/dev/null | sort -V | tail -1)
[ -n "$postgres" ] || { echo "two-vms: the package postgresql is not installed" >&2; exit 1; }
export PATH=$PATH:${postgres%/*} PGCONNECT_TIMEOUT=5 PGUSER=postgres

tmp=$(mktemp -d /tmp/two-vms.XXXXXX)
chmod 755 "$tmp"
A=tv$$-a B=tv$$-b R=tv$$-r
pids=()
passed=0 failed=0

cleanup() {
    local pid status=$?
    if [ $failed -gt 0 ] || [ $status -ne 0 ]; then
        for log in "$tmp"/*.log; do
            [ ! -e "$log" ] || { echo "-- $log"; tail -30 "$log"; } >&2
        done
    fi
    for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null && wait "$pid" 2>/dev/null || true; done
    for name in $A $B $R; do
        for pid in $(ip netns pids $name 2>/dev/null); do kill -9 "$pid" 2>/dev/null || true; done
        ip netns del $name 2>/dev/null || true
        rm -rf "/etc/netns/$name"
    done
    rm -rf "$tmp"
}
trap cleanup EXIT

# -- helpers -------------------------------------------------------------------------------------------------------

# Everything on machine A or B runs with that machine's state and resolver configuration.
on() { # MACHINE COMMAND..
    local name=$1
    shift
    ip netns exec "$name" env GOSSAMER_STATE_DIR="$tmp/$name" GOSSAMER_SOCKET="$tmp/$name.sock" \
        GOSSAMER_CONFIG="$tmp/$name.toml" "$@"
}

background() { # LOG COMMAND..: starts it, its process id is ${pids[-1]}
    local log=$tmp/$1
    shift
    "$@" >>"$log" 2>&1 &
    pids+=($!)
}

# `on` for background: replaces the shell, so that the process id is the program's own.
become() {
    local name=$1
    shift
    exec ip netns exec "$name" env GOSSAMER_STATE_DIR="$tmp/$name" GOSSAMER_SOCKET="$tmp/$name.sock" \
        GOSSAMER_CONFIG="$tmp/$name.toml" "$@"
}

eventually() { # SECONDS COMMAND..: until it succeeds
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.05
    done
}

check() { # TEXT COMMAND..; no subshell: the command may start something
    local text=$1
    shift
    if "$@" >"$tmp/said" 2>&1; then
        echo "PASS $text"
        passed=$((passed + 1))
    else
        echo "FAIL $text"
        tail -5 "$tmp/said" | sed 's/^/     /'
        failed=$((failed + 1))
    fi
}

gives() { # WANTED COMMAND..: whether its output, blanks squeezed, is exactly this
    local wanted=$1 got
    shift
    got=$("$@" 2>&1 | tr -s ' \n\t' ' ' | sed 's/ $//') || true
    [ "$got" = "$wanted" ] || { echo "it gives: $got"; return 1; }
}

says() { # PATTERN COMMAND..: whether a line of its output matches
    local pattern=$1 got
    shift
    got=$("$@" 2>&1) || true
    grep -qE "$pattern" <<<"$got" || { echo "it says: $got"; return 1; }
}

fails() { ! "$@"; }

ready() { eventually 20 on "$1" gossamer status; } # MACHINE
ask() { on $A dig +tries=2 +time=2 "$@"; }
place() { on "$1" psql -h "$2" -d postgres -Atc 'select machine from place'; } # MACHINE HOST
has_address() { ask +short "$1" A | grep -qE '^127\.240\.[0-9]+\.[0-9]+$'; }
getent_address() { on $A getent ahosts "$1" | grep -qE '^127\.240\.[0-9.]+ +STREAM'; }

# -- two networks with the same addresses, and one between ---------------------------------------------------------

machine() { # NAME OUTSIDE GATEWAY
    ip netns add "$1"
    ip -n "$1" link set lo up
    ip -n "$1" link add inside type bridge
    ip -n "$1" addr add 10.0.0.4/16 dev inside
    ip -n "$1" link set inside up
    ip -n "$1" link add outside type veth peer name "to-${1##*-}" netns $R
    ip -n "$1" addr add "$2/24" dev outside
    ip -n "$1" link set outside up
    ip -n $R addr add "$3/24" dev "to-${1##*-}"
    ip -n $R link set "to-${1##*-}" up
    ip -n "$1" route add default via "$3"
    mkdir -p "/etc/netns/$1"
    echo 'nameserver 127.240.0.53' >"/etc/netns/$1/resolv.conf"
    : >"$tmp/$1.toml"
}

ip netns add $R
ip -n $R link set lo up
ip netns exec $R sysctl -qw net.ipv4.ip_forward=1
machine $A 192.0.2.10 192.0.2.1
machine $B 198.51.100.20 198.51.100.1
ip netns exec $B nft 'table inet wall {
    chain in {
        type filter hook input priority 0; policy drop;
        iif lo accept
        iifname inside accept
        ct state established,related accept
    }
}'

# -- PostgreSQL -----------------------------------------------------------------------------------------------------

as_postgres=(setpriv --reuid postgres --regid postgres --init-groups)

make_cluster() { # MACHINE
    install -d -o postgres "$tmp/pg-$1"
    "${as_postgres[@]}" initdb -D "$tmp/pg-$1" -A trust -U postgres --no-sync >"$tmp/initdb-$1.log" 2>&1
    echo "listen_addresses = '*'
unix_socket_directories = '$tmp/pg-$1'
fsync = off" >>"$tmp/pg-$1/postgresql.conf"
}

start_postgres() { # MACHINE; the process id is ${pids[-1]}
    background "postgres-$1.log" become "$1" "${as_postgres[@]}" "$postgres" -D "$tmp/pg-$1"
    eventually 20 on "$1" psql -h "$tmp/pg-$1" -d postgres -c 'select 1'
}

stop_postgres() { # PID; a fast shutdown
    kill -INT "$1"
    wait "$1" || true
}

fill() { on "$1" psql -q -h "$tmp/pg-$1" -d postgres -c "create table place as select '$2'::text as machine"; }

make_cluster $B
start_postgres $B
pg_b=${pids[-1]}
fill $B B

for machine in $A $B; do
    check "${machine##*-} is 10.0.0.4 inside" says ' 10\.0\.0\.4/16' ip -n "$machine" -br addr show inside
done
check 'A cannot reach PostgreSQL of B by address' fails on $A nc -z -w 1 198.51.100.20 5432

# -- a mesh of two ----------------------------------------------------------------------------------------------------

echo 'import = ["orders-db@east"]' >"$tmp/$A.toml"
background daemon-a.log become $A gossamer init --group west --node vm-a --advertise 192.0.2.10
daemon_a=${pids[-1]}
check 'gossamer init in A' ready $A
token=$(on $A gossamer token create --group east 2>/dev/null)
background daemon-b.log become $B gossamer join "$token" --node vm-b
check 'gossamer join in B, which accepts nothing from outside' ready $B
alive() { on "$1" gossamer nodes | grep -E "$2 .*alive"; }
check 'A sees B' eventually 20 alive $A vm-b
check 'B sees A' eventually 20 alive $B vm-a
check 'gossamer expose orders-db:5432 in B' on $B gossamer expose orders-db:5432 --to west

# -- the name is all it takes -----------------------------------------------------------------------------------------

name=orders-db.mesh.internal
eventually 20 has_address $name || true
check "psql -h $name in A reaches PostgreSQL of B" gives B place $A $name
for form in $name orders-db.east.mesh.internal vm-b.orders-db.east.mesh.internal; do
    check "dig $form" has_address $form
    check "getent ahosts $form" getent_address $form
    check "psql -h $form" gives B place $A $form
done
vip=$(ask +short $name A)
check 'dig AAAA: the name exists' says 'status: NOERROR' ask $name AAAA
check 'dig AAAA: the type does not' gives '' ask +short $name AAAA
check 'dig SRV names the instance' says ' 5432 vm-b\.orders-db\.east\.mesh\.internal\.$' \
    ask +short _5432._tcp.$name SRV
check 'dig -x of its address names the service' says '^orders-db\.' ask +short -x "$vip"
check 'dig TXT is answered' says 'status: NOERROR' ask $name TXT
check 'dig of the node' says '^198\.51\.100\.20$' ask +short vm-b.node.mesh.internal A
check 'getent ahosts of the node' says '^198\.51\.100\.20 ' on $A getent ahosts vm-b.node.mesh.internal
for kind in SOA NS; do
    check "dig $kind of the zone" says . ask +short mesh.internal $kind
done
check 'an unknown name is NXDOMAIN' says 'status: NXDOMAIN' ask nothing.mesh.internal
check 'a foreign name is REFUSED' says 'status: REFUSED' ask example.com
check 'dig over TCP' gives "$vip" ask +tcp +short $name

# -- PostgreSQL of B restarts while the daemon runs -------------------------------------------------------------------

check 'the name works in B as well' gives B place $B $name
stop_postgres "$pg_b"
check 'PostgreSQL in B starts again: nobody took its port' start_postgres $B
pg_b=${pids[-1]}
check 'psql in A reaches it again' eventually 20 gives B place $A $name

# -- a server that speaks first ---------------------------------------------------------------------------------------

cat >"$tmp/greeter.py" <<'PYTHON'
import socket
with socket.create_server(("127.0.0.1", 2525)) as server:
    while True:
        client, _ = server.accept()
        client.sendall(b"220 ready\r\n")
        client.close()
PYTHON
background greeter.log become $B python3 "$tmp/greeter.py"
eventually 10 on $B nc -z 127.0.0.1 2525
check 'gossamer expose mail:2525 in B' on $B gossamer expose mail:2525 --to west
eventually 20 has_address mail.east.mesh.internal || true
check 'a server that speaks first is heard in A' says '^220 ready' on $A timeout 5 nc -d mail.east.mesh.internal 2525

# -- a phase of its own: another PostgreSQL has the port in A before the name is used ---------------------------------

kill -TERM "$daemon_a"
wait "$daemon_a" || true
make_cluster $A
start_postgres $A
pg_a=${pids[-1]}
fill $A A
background daemon-a.log become $A gossamer run
check 'A starts again from its state' ready $A
check 'A sees B again' eventually 20 alive $A vm-b
nodata() { says 'ANSWER: 0' ask $name A; }
check 'with a PostgreSQL on *:5432 in A the name has no address' eventually 20 nodata
check 'it exists all the same' says 'status: NOERROR' ask $name A
check 'the answer says why' says 'EDE: .*5432' ask $name A
check 'getent finds no address' fails on $A getent ahosts $name
check 'psql by name does not reach the PostgreSQL of A' fails place $A $name
check 'PostgreSQL of A itself is untouched' gives A place $A 127.0.0.1
check 'gossamer status marks the port' eventually 10 says '!.*5432' on $A gossamer status
stop_postgres "$pg_a"
check 'once it has ended, the name reaches B again' eventually 20 gives B place $A $name

echo "$passed passed, $failed failed, $SECONDS s"
[ $failed = 0 ]
