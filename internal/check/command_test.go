package check_test

import (
	"strings"
	"testing"

	"holdfast/internal/check"
)

func TestJudgeCommand(t *testing.T) {
	const ok, warning, critical = check.OK, check.Warning, check.Critical
	for _, c := range []struct {
		command, script string
		want            check.Status
		says            string
	}{
		{`holdfast wal-push %p`, "", ok, ""},
		{`/usr/bin/holdfast wal-push "%p"`, "", ok, ""},
		{`holdfast-client /run/holdfast/daemon.sock wal-push %p`, "", ok, ""},
		{`WALG_FILE_PREFIX=/srv/a timeout 60 nice holdfast --config=/etc/holdfast.yaml wal-push %p >>/var/log/holdfast 2>&1`, "", ok, ""},
		{`cd /; holdfast wal-push %p`, "", ok, ""},
		{`while test -e /hold; do sleep 0.1; done; holdfast wal-push "%p"`, "", ok, ""},
		{`test ! -e /hold && holdfast wal-push %p && touch /archived`, "", ok, ""},
		{`holdfast wal-push %p || exit 1`, "", ok, ""},
		{`holdfast wal-push %p || wal-g wal-push %p`, "", ok, ""},
		{`holdfast wal-push %p; exit $?`, "", ok, ""},
		{`holdfast wal-push %p; rc=$?; test $rc = 0 || logger "$rc"; exit $rc`, "", ok, ""},
		{`holdfast wal-push %p && touch /archived || exit 1`, "", ok, ""},
		{`holdfast wal-push %p && touch /archived; exit $?`, "", ok, ""},
		{`holdfast wal-push %p && exit 0; exit 1`, "", ok, ""},
		{`holdfast wal-push %p && echo %f | tee -a /log`, "", ok, ""},
		{`if ! holdfast wal-push %p; then exit 1; fi`, "", ok, ""},
		{`sh -c 'exec holdfast wal-push "$1"' x %p`, "", ok, ""},
		{`set -o pipefail; holdfast wal-push %p | tee /log`, "", ok, ""},
		{`set -e; holdfast wal-push %p; echo done`, "", ok, ""},

		{``, "", critical, "is empty"},
		{` `, "", critical, "is empty"},
		{`/bin/true`, "", critical, "stores none"},
		{`true`, "", critical, "stores none"},
		{`:`, "", critical, "stores none"},
		{`exit 0`, "", critical, "stores none"},
		{`# holdfast wal-push %p` + "\ntrue", "", critical, "stores none"},
		{`holdfast wal-push`, "", critical, "without %p"},
		{`holdfast wal-push %f`, "", critical, "without %p"},
		{`test -f %p && holdfast wal-push`, "", critical, "without %p"},
		{`holdfast wal-fetch %f %p`, "", critical, "calls `holdfast wal-fetch`, which is not wal-push"},
		{`holdfast wal-push %p || true`, "", critical, "`true`"},
		{`holdfast wal-push %p || echo failed`, "", critical, "`echo failed`"},
		{`holdfast wal-push %p || exit 0`, "", critical, "`exit 0`"},
		{`holdfast wal-push %p ; true`, "", critical, "`true`"},
		{`holdfast wal-push %p && touch /archived; true`, "", critical, "`true`"},
		{`holdfast wal-push %p && touch /a && touch /b || echo failed`, "", critical, "`echo failed`"},
		{`holdfast wal-push "%p"; echo $? >>/log`, "", critical, "whatever became of that"},
		{`holdfast wal-push %p &`, "", critical, "does not wait"},
		{`holdfast wal-push %p 2>&1 | tee -a /log`, "", critical, "behind `|`"},
		{`sh -c 'holdfast wal-push %p; exit 0'`, "", critical, "`exit 0`"},
		{`sh -c 'holdfast wal-push %p' || true`, "", critical, "`true`"},

		{`cp %p /mnt/archive/%f`, "", warning, `another program, "cp"`},
		{`wal-g wal-push %p`, "", warning, "WAL-G"},
		{`envdir /etc/wal-g wal-g wal-push %p`, "", warning, "WAL-G"},
		{`/opt/archive.sh %p`, "", warning, "another program"},
		{`/opt/archive.sh %p`, "#!/bin/sh\ncp $1 /mnt\n", warning, "another program"},

		{`/opt/archive.sh %p`, "#!/bin/sh\nexec holdfast wal-push \"$1\"\n", ok, ""},
		{`/opt/archive.sh %p`, "#!/bin/sh\nset -e\nholdfast wal-push \"$1\"\nexit 0\n", ok, ""},
		{`/opt/archive.sh %p`, "#!/bin/sh\nholdfast wal-push \"$1\" || exit 1\nexit 0\n", ok, ""},
		{`/opt/archive.sh %p`, "#!/bin/sh\nif holdfast wal-push \"$1\"; then\n  exit 0\nfi\nexit 1\n", ok, ""},
		{`/opt/archive.sh %p`, "#!/bin/sh\nholdfast wal-push \"$1\"\nrc=$?\nlogger \"$rc\"\nexit $rc\n", ok, ""},
		{`/opt/archive.sh %p`, "#!/bin/sh\nholdfast wal-push \"$1\"\nlogger done\nexit 0\n", critical, "ends with `exit 0`"},
		{`/opt/archive.sh %p`, "#!/bin/sh\nholdfast wal-push \"$1\" || true\n", critical, "`true`"},
		{`/opt/archive.sh %p`, "#!/bin/bash\nholdfast wal-push \"$1\" | logger\n", critical, "behind `|`"},
		{`/opt/archive.sh %p`, "#!/bin/bash\nset -euo pipefail\nholdfast wal-push \"$1\" | logger\n", ok, ""},
		{`/opt/archive.sh %p`, "#!/bin/sh\nholdfast wal-push \"$1\" &\n", critical, "does not wait"},
		{`/opt/archive.sh %p`, "#!/bin/sh\nholdfast wal-push\n", critical, "without a file"},
		{`/opt/archive.sh`, "#!/bin/sh\nexec holdfast wal-push \"$1\"\n", critical, "neither %p nor %f"},
	} {
		got := check.JudgeCommand(c.command, c.script)
		if got.Status != c.want || !strings.Contains(got.Text, c.says) {
			t.Errorf("%q %q: %s %q, want %s and %q", c.command, c.script, got.Status, got.Text, c.want, c.says)
		}
		if (got.Next == "") != (got.Status == ok) {
			t.Errorf("%q: %s, next %q", c.command, got.Status, got.Next)
		}
	}
}

// Whatever the text is, it is judged, and what calls nothing of ours is never fine.
func FuzzJudgeCommand(f *testing.F) {
	for _, seed := range []string{"holdfast wal-push %p", "sh -c 'a; b' || true", `"\`, "if a; then b & fi|", "sh -c", "sh -c \"sh -c 'sh -c x'\"", "&&||;;#", "$(holdfast wal-push %p)"} {
		f.Add(seed, seed)
	}
	f.Fuzz(func(t *testing.T, command, script string) {
		v := check.JudgeCommand(command, script)
		if v.Status == check.OK && !strings.Contains(command+script, "wal-push") && !strings.ContainsAny(command+script, `\"'`) {
			t.Errorf("%q is fine", command)
		}
		if v.Status != check.OK && (v.Text == "" || v.Next == "") {
			t.Errorf("%q: %+v", command, v)
		}
	})
}
