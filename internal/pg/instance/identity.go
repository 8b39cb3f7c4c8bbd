package instance

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"syscall"
)

// identity is the account a server runs under; nil means our own.
type identity struct {
	name string
	home string
	cred *syscall.Credential
}

// runAs finds the account to start PostgreSQL's programs under, which refuse to run as root: the named user or, with no name, the
// owner of dir. Only root can choose; anyone else runs them as themselves.
func runAs(name, dir string) (*identity, error) {
	if os.Geteuid() != 0 {
		if me, err := user.Current(); name != "" && (err != nil || me.Username != name) {
			return nil, fmt.Errorf("run as %s: only root can run PostgreSQL as another user", name)
		}
		return nil, nil
	}
	var u *user.User
	if name != "" {
		var err error
		if u, err = user.Lookup(name); err != nil {
			return nil, fmt.Errorf("run as %s: %w", name, err)
		}
	} else {
		info, err := os.Stat(dir)
		if err != nil {
			return nil, err
		}
		uid := strconv.FormatUint(uint64(info.Sys().(*syscall.Stat_t).Uid), 10)
		if u, err = user.LookupId(uid); err != nil {
			return nil, fmt.Errorf("run as the owner of %s: %w", dir, err)
		}
	}
	if u.Uid == "0" {
		return nil, fmt.Errorf("run as root: PostgreSQL refuses that; name a user or give %s to one", dir)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	groups, err3 := u.GroupIds()
	if err1 != nil || err2 != nil || err3 != nil {
		return nil, fmt.Errorf("run as %s: user %s, group %s, groups %v", u.Username, u.Uid, u.Gid, err3)
	}
	cred := &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	for _, g := range groups {
		if n, err := strconv.ParseUint(g, 10, 32); err == nil {
			cred.Groups = append(cred.Groups, uint32(n))
		}
	}
	return &identity{name: u.Username, home: u.HomeDir, cred: cred}, nil
}

// apply makes cmd run under id, with a home directory it can read.
func (id *identity) apply(cmd *exec.Cmd) {
	if id == nil {
		return
	}
	cmd.Env = append(cmd.Environ(), "HOME="+id.home, "USER="+id.name, "LOGNAME="+id.name)
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Credential = id.cred
}

// give makes a file belong to id.
func (id *identity) give(f *os.File) error {
	if id == nil {
		return nil
	}
	return f.Chown(int(id.cred.Uid), int(id.cred.Gid))
}
