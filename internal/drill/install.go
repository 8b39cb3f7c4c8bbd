package drill

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strings"
)

// toInstall says how to come by the server programs of a major version, on a system whose os-release(5) is release.
func toInstall(major int, release []byte) string {
	like := " "
	for lines := bufio.NewScanner(bytes.NewReader(release)); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), "="); ok && (name == "ID" || name == "ID_LIKE") {
			like += strings.Trim(value, `"'`) + " "
		}
	}
	is := func(id string) bool { return strings.Contains(like, " "+id+" ") }
	switch {
	case runtime.GOOS == "darwin":
		return fmt.Sprintf("`brew install postgresql@%d` brings it", major)
	case is("debian"), is("ubuntu"):
		return fmt.Sprintf("`apt-get install postgresql-%d` brings it (from apt.postgresql.org where the distribution has another version)", major)
	case is("rhel"), is("fedora"), is("centos"):
		return fmt.Sprintf("`dnf install postgresql%d-server postgresql%[1]d-contrib` brings it (from yum.postgresql.org)", major)
	case is("suse"), is("opensuse"):
		return fmt.Sprintf("`zypper install postgresql%d-server postgresql%[1]d-contrib` brings it", major)
	case is("alpine"):
		return fmt.Sprintf("`apk add postgresql%d postgresql%[1]d-contrib` brings it", major)
	}
	return fmt.Sprintf("install PostgreSQL %d, server and contrib modules", major)
}

// readOSRelease returns what the system says of itself; nothing where it does not.
func readOSRelease() []byte {
	b, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return nil
	}
	return b
}
