package crypt

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// gpgWait is how long gpg may take: the agent may have to wake a token up.
const gpgWait = time.Minute

// A gpg runs the local gpg with its key ring. Of an object, gpg gets the encrypted session keys and gives back the session
// key, so that secret keys stay where they are, and those that cannot be exported, of a token, do as well.
type gpg struct {
	program, home string
	id            string
	passphrase    string
	setting       string // the passphrase's
}

// run runs gpg without ever asking anybody. The passphrase goes through a pipe.
func (g *gpg) run(ctx context.Context, stdin []byte, arg ...string) (stdout, stderr []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, gpgWait)
	defer cancel()
	all := []string{"--batch", "--no-tty"}
	if g.home != "" {
		all = append(all, "--homedir", g.home)
	}
	program := g.program
	if program == "" {
		program = "gpg"
	}
	mode := []string{"--pinentry-mode", "error"}
	cmd := exec.CommandContext(ctx, program)
	if g.passphrase != "" {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, nil, err
		}
		defer r.Close()
		_, err = w.WriteString(g.passphrase + "\n")
		w.Close()
		if err != nil {
			return nil, nil, err
		}
		cmd.ExtraFiles = []*os.File{r}
		mode = []string{"--pinentry-mode", "loopback", "--passphrase-fd", "3"}
	}
	cmd.Args = append(append(append(cmd.Args, all...), mode...), arg...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdin = bytes.NewReader(stdin)
	var out, text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &text
	cmd.WaitDelay = time.Second // an agent that gpg starts may keep the pipes open
	err = cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("gpg did not answer: %w", ctx.Err())
	}
	return out.Bytes(), text.Bytes(), err
}

// export returns the public keys of the id.
func (g *gpg) export(ctx context.Context) ([]byte, error) {
	keys, text, err := g.run(ctx, nil, "--export", "--", g.id)
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return nil, errors.New("gpg is not installed, or not in PATH")
	case err != nil:
		return nil, fmt.Errorf("gpg --export: %w: %s", err, oneLine(text))
	case len(keys) == 0:
		return nil, errors.New("gpg has no such public key in its key ring")
	}
	return keys, nil
}

// exportSecret returns the secret keys of the id, which have their passphrase still. Those of a token cannot be had.
func (g *gpg) exportSecret(ctx context.Context) ([]byte, error) {
	keys, _, err := g.run(ctx, nil, "--export-secret-keys", "--", g.id)
	return keys, err
}

// secretKeys returns the ids of the secret keys that gpg has for the id and that can decrypt; none if it cannot say.
func (g *gpg) secretKeys(ctx context.Context) []string {
	list, _, err := g.run(ctx, nil, "--with-colons", "--list-secret-keys", "--", g.id)
	if err != nil {
		return nil
	}
	var ids []string
	for line := range strings.Lines(string(list)) {
		// doc/DETAILS of GnuPG: 1 is the record's type, 5 the key's id, 12 what it can do, 15 where the secret is, # being nowhere
		f := strings.Split(line, ":")
		if len(f) > 14 && (f[0] == "sec" || f[0] == "ssb") && strings.Contains(f[11], "e") && f[14] != "#" {
			ids = append(ids, f[4])
		}
	}
	return ids
}

// session asks gpg for the session key that keys, the beginning of a message, have encrypted.
func (g *gpg) session(ctx context.Context, keys []byte) (sessionKey, error) {
	// gpg says the session key once it comes to the encrypted data, before it finds that this is none. It says it on stderr too.
	message := append(append([]byte(nil), keys...), pgpData, 41, 1)
	message = append(message, make([]byte, 40)...)
	status, text, err := g.run(ctx, message, "--status-fd", "1", "--show-session-key", "--yes", "--output", os.DevNull, "--decrypt")
	var missing, failed bool
	for line := range strings.Lines(string(status)) {
		word, rest, _ := strings.Cut(strings.TrimSpace(strings.TrimPrefix(line, "[GNUPG:] ")), " ")
		switch word {
		case "SESSION_KEY":
			if s, ok := parseSessionKey(rest); ok {
				return s, nil
			}
			return sessionKey{}, errors.New("gpg gave a session key that is none")
		case "NO_SECKEY":
			missing = true
		case "MISSING_PASSPHRASE", "BAD_PASSPHRASE", "ERROR":
			failed = true
		}
	}
	switch {
	case ctx.Err() != nil:
		return sessionKey{}, ctx.Err()
	case errors.Is(err, exec.ErrNotFound):
		return sessionKey{}, errors.New("gpg is not installed, or not in PATH")
	case !failed && !missing:
		return sessionKey{}, fmt.Errorf("gpg gave no session key: %s", oneLine(text))
	case failed:
		return sessionKey{}, fmt.Errorf("gpg cannot use its secret key (%s): it needs a passphrase in %s or in its agent",
			oneLine(text), g.setting)
	}
	return sessionKey{}, errors.New("gpg has none of the secret keys")
}

// parseSessionKey reads a cipher's number, a colon and a key in hexadecimal.
func parseSessionKey(s string) (sessionKey, bool) {
	number, digits, _ := strings.Cut(s, ":")
	number, _, _ = strings.Cut(number, ".") // the mode of AEAD may follow
	n, err1 := strconv.ParseUint(number, 10, 8)
	key, err2 := hex.DecodeString(digits)
	c := packet.CipherFunction(n)
	return sessionKey{c, key}, err1 == nil && err2 == nil && c.IsSupported() && len(key) == c.KeySize()
}

// oneLine returns the last line of what gpg said, without what might be secret.
func oneLine(text []byte) string {
	last := "it said nothing"
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && !strings.Contains(line, "session key") {
			last = line
		}
	}
	return last[:min(len(last), 200)]
}
