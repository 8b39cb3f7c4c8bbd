package crypt

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"golang.org/x/crypto/ssh"
)

const (
	ageMagic  = "age-encryption.org/v1\n"
	ageHeader = 1 << 20 // bytes that a header may have; one of a hundred RSA keys has 45,000
)

// ageKeys is what AgeKeys say.
type ageKeys struct {
	recipients []age.Recipient
	identities []age.Identity
	ids        []ID
	settings   string // where identities come from or would
}

func openAge(o AgeKeys, name func(string) string) (*ageKeys, error) {
	k := &ageKeys{settings: name("HOLDFAST_AGE_IDENTITIES") + " or " + name("HOLDFAST_AGE_IDENTITIES_PATH")}
	for _, s := range []struct {
		text, path, setting string
		add                 func(text string) error
	}{
		{o.Recipients, o.RecipientsPath, "HOLDFAST_AGE_RECIPIENTS", k.addRecipients},
		{o.Identities, o.IdentitiesPath, "HOLDFAST_AGE_IDENTITIES", k.addIdentities},
	} {
		if s.text != "" {
			if err := s.add(strings.ReplaceAll(s.text, `\n`, "\n")); err != nil {
				return nil, fmt.Errorf("%s: %w", name(s.setting), err)
			}
		}
		if s.path != "" {
			b, err := os.ReadFile(s.path)
			if err == nil {
				err = s.add(string(b))
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name(s.setting+"_PATH"), err)
			}
		}
	}
	if len(k.recipients) > 0 {
		// Some keys do not go with others: better to know now than at the first object.
		if _, err := age.Encrypt(io.Discard, k.recipients...); err != nil {
			return nil, fmt.Errorf("%s: %w", name("HOLDFAST_AGE_RECIPIENTS"), err)
		}
	}
	return k, nil
}

// ageLines returns the keys in text, one a line or between commas. A comma may also be in the comment behind an SSH key.
func ageLines(text string) []string {
	var keys []string
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		ssh := false
		for part := range strings.SplitSeq(line, ",") {
			part = strings.TrimSpace(part)
			begins := strings.HasPrefix(part, "age1") || strings.HasPrefix(part, "ssh-")
			switch {
			case ssh && !begins:
				keys[len(keys)-1] += "," + part
			case part != "":
				keys = append(keys, part)
				ssh = strings.HasPrefix(part, "ssh-")
			}
		}
	}
	return keys
}

func (k *ageKeys) addRecipients(text string) error {
	keys := ageLines(text)
	if len(keys) == 0 {
		return errors.New("there is no recipient in it")
	}
	for i, key := range keys {
		var r age.Recipient
		var err error
		id := key
		switch {
		case strings.HasPrefix(key, "age1pq1"):
			r, err = age.ParseHybridRecipient(key)
		case strings.HasPrefix(key, "age1"):
			r, err = age.ParseX25519Recipient(key)
		case strings.HasPrefix(key, "ssh-"):
			if r, err = agessh.ParseRecipient(key); err == nil {
				pub, _, _, _, _ := ssh.ParseAuthorizedKey([]byte(key))
				id = sshID(pub)
			}
		default: // it may be a secret key, so no word of it
			return fmt.Errorf("key %d is no recipient: want age1…, ssh-ed25519 … or ssh-rsa …", i+1)
		}
		if err != nil {
			return fmt.Errorf("key %d is no recipient that can be used: %w", i+1, err)
		}
		if k.note(ID{Kind: Age, ID: id, Write: true}) {
			k.recipients = append(k.recipients, r)
		}
	}
	return nil
}

// addIdentities never says what is in text, which is secret.
func (k *ageKeys) addIdentities(text string) error {
	if strings.Contains(text, "-----BEGIN ") {
		return k.addSSH([]byte(text))
	}
	keys := ageLines(text)
	if len(keys) == 0 {
		return errors.New("there is no identity in it")
	}
	for i, key := range keys {
		var id age.Identity
		var public fmt.Stringer
		switch {
		case strings.HasPrefix(key, "AGE-SECRET-KEY-PQ-1"):
			if h, err := age.ParseHybridIdentity(key); err == nil {
				id, public = h, h.Recipient()
			}
		case strings.HasPrefix(key, "AGE-SECRET-KEY-1"):
			if x, err := age.ParseX25519Identity(key); err == nil {
				id, public = x, x.Recipient()
			}
		}
		if id == nil {
			return fmt.Errorf("key %d is no identity, or mistyped: want AGE-SECRET-KEY-1…, AGE-SECRET-KEY-PQ-1… or an SSH key in PEM", i+1)
		}
		if k.note(ID{Kind: Age, ID: public.String(), Read: true}) {
			k.identities = append(k.identities, id)
		}
	}
	return nil
}

func (k *ageKeys) addSSH(pem []byte) error {
	id, err := agessh.ParseIdentity(pem)
	if locked := (*ssh.PassphraseMissingError)(nil); errors.As(err, &locked) {
		return errors.New("the SSH key has a passphrase: make a copy without one, or an identity with age-keygen")
	} else if err != nil {
		return errors.New("the SSH key cannot be used: want an ed25519 or RSA key in PEM")
	}
	signer, err := ssh.ParsePrivateKey(pem)
	if err != nil {
		return errors.New("the SSH key cannot be used")
	}
	if k.note(ID{Kind: Age, ID: sshID(signer.PublicKey()), Read: true}) {
		k.identities = append(k.identities, id)
	}
	return nil
}

func sshID(k ssh.PublicKey) string { return k.Type() + " " + ssh.FingerprintSHA256(k) }

// note adds what a key can do to the list. It reports whether that was new.
func (k *ageKeys) note(id ID) bool {
	for i := range k.ids {
		if have := &k.ids[i]; have.ID == id.ID {
			had := *have
			have.Write, have.Read = have.Write || id.Write, have.Read || id.Read
			return *have != had
		}
	}
	k.ids = append(k.ids, id)
	return true
}

func (k *ageKeys) encrypt(src *watch) (io.ReadCloser, error) {
	r, err := age.EncryptReader(src, k.recipients...)
	if err != nil {
		return nil, fmt.Errorf("encrypt %s: %w", Age, err)
	}
	return io.NopCloser(struct{ io.Reader }{r}), nil
}

func (k *ageKeys) decrypt(src *watch, in *bufio.Reader) (io.ReadCloser, error) {
	src.limit(ageHeader)
	w := &witness{}
	r, err := age.Decrypt(in, append(slices.Clone(k.identities), w)...) // reads the header through in itself
	src.limit(-1)
	if err != nil {
		return nil, k.explain(err, w)
	}
	return io.NopCloser(ageReader{r}), nil
}

// An ageReader words the library's errors.
type ageReader struct{ io.Reader }

func (r ageReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		err = fmt.Errorf("damaged, or the end is missing: %w", err)
	}
	return n, err
}

// explain says why a header cannot be read.
func (k *ageKeys) explain(err error, w *witness) error {
	switch no := (*age.NoIdentityMatchError)(nil); {
	case errors.As(err, &no) && len(k.identities) == 0:
		return fmt.Errorf("it is for %s, and no identity is set in %s", w, k.settings)
	case errors.As(err, &no):
		return fmt.Errorf("it is for %s, and none of the identities fits: see %s", w, k.settings)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("in the header: %w", io.ErrUnexpectedEOF)
	case len(err.Error()) > 200: // the library quotes what it cannot read
		return errors.New("the header is damaged")
	}
	return fmt.Errorf("the header is damaged: %w", err)
}

// A witness is an identity that fits nothing and remembers who was asked for.
type witness struct{ stanzas []*age.Stanza }

// Unwrap implements age.Identity.
func (w *witness) Unwrap(stanzas []*age.Stanza) ([]byte, error) {
	w.stanzas = stanzas
	return nil, age.ErrIncorrectIdentity
}

// String lists the first recipients that were asked for: their types and, where they tell, which key.
func (w *witness) String() string {
	const most = 8
	var all []string
	for _, s := range w.stanzas {
		who := s.Type
		if strings.HasPrefix(who, "ssh-") && len(s.Args) > 0 {
			who += " " + s.Args[0]
		}
		if len(who) > 40 {
			who = who[:40] + "…"
		}
		if all = append(all, fmt.Sprintf("%q", who)); len(all) == most && len(w.stanzas) > most {
			return strings.Join(all, ", ") + fmt.Sprintf(" and %d more", len(w.stanzas)-most)
		}
	}
	return strings.Join(all, ", ")
}
