package crypt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// pgpKeys is what PGPKeys say.
type pgpKeys struct {
	ctx        context.Context    // for gpg
	write      openpgp.EntityList // for whom we encrypt; no key twice
	secret     []*secretKey       // those that can decrypt
	passphrase []byte
	gpg        *gpg                // nil if no key of its ring is set
	exported   func() []*secretKey // what gpg lets out of its key ring
	name       func(string) string
	settings   string // where keys come from or would
}

func openPGP(ctx context.Context, o PGPKeys, name func(string) string) (*pgpKeys, error) {
	k := &pgpKeys{ctx: ctx, passphrase: []byte(o.Passphrase), name: name,
		settings: name("WALG_PGP_KEY") + " or " + name("WALG_PGP_KEY_PATH")}
	if o.Key != "" {
		if err := k.add([]byte(strings.ReplaceAll(o.Key, `\n`, "\n"))); err != nil {
			return nil, fmt.Errorf("%s: %w", name("WALG_PGP_KEY"), err)
		}
	}
	if o.KeyPath != "" {
		b, err := os.ReadFile(o.KeyPath)
		if err == nil {
			err = k.add(b)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name("WALG_PGP_KEY_PATH"), err)
		}
	}
	if o.GPGKeyID != "" {
		k.gpg = &gpg{program: o.GPGProgram, home: o.GPGHome, id: o.GPGKeyID, passphrase: o.Passphrase,
			setting: name("WALG_PGP_KEY_PASSPHRASE")}
		k.exported = sync.OnceValue(k.export)
		keys, err := k.gpg.export(ctx)
		if err == nil {
			err = k.add(keys)
		}
		if err != nil {
			return nil, fmt.Errorf("%s %q: %w", name("WALG_GPG_KEY_ID"), o.GPGKeyID, err)
		}
	}
	if len(k.write) == 0 && o.Passphrase != "" {
		return nil, fmt.Errorf("%s is set, but no key: see %s", name("WALG_PGP_KEY_PASSPHRASE"), k.settings)
	}
	if _, _, err := pgpHead(k.write, time.Now()); err != nil && len(k.secret) == 0 && k.gpg == nil {
		return nil, fmt.Errorf("%s: %w", k.settings, err) // it can neither write nor read
	}
	return k, nil
}

// export returns the secret keys of gpg's that have a passphrase and can be had: with them gpg takes half a second for each
// object.
func (k *pgpKeys) export() []*secretKey {
	if len(k.passphrase) == 0 {
		return nil
	}
	b, err := k.gpg.exportSecret(k.ctx)
	ring := &pgpKeys{}
	if err != nil || ring.add(b) != nil {
		return nil // gpg is asked for each object
	}
	return ring.secret
}

// add takes all keys in b, which is armored, in one piece or several, or not.
func (k *pgpKeys) add(b []byte) error {
	const begin = "-----BEGIN PGP "
	if !bytes.Contains(b, []byte(begin)) {
		return k.addRing(bytes.NewReader(b))
	}
	for {
		at := bytes.Index(b, []byte(begin))
		if at < 0 {
			return nil
		}
		b = b[at:]
		end := len(b)
		if next := bytes.Index(b[1:], []byte(begin)); next >= 0 {
			end = next + 1
		}
		block, err := armor.Decode(bytes.NewReader(b[:end]))
		switch {
		case err != nil:
			return errors.New("the armor of the key is damaged")
		case block.Type != openpgp.PublicKeyType && block.Type != openpgp.PrivateKeyType:
			return fmt.Errorf("a %s is no key", block.Type)
		}
		if err := k.addRing(block.Body); err != nil {
			return err
		}
		b = b[end:]
	}
}

// addRing takes all keys of a ring. One that the library does not understand is an error, for nothing would be encrypted for
// it.
func (k *pgpKeys) addRing(r io.Reader) error {
	packets := packet.NewReader(r)
	for n := 0; ; n++ {
		e, err := openpgp.ReadEntity(packets)
		switch {
		case err == io.EOF && n > 0:
			return nil
		case err == io.EOF:
			return errors.New("there is no OpenPGP key in it")
		case err != nil:
			return fmt.Errorf("key %d cannot be used: %w", n+1, err)
		}
		k.addEntity(e)
	}
}

func (k *pgpKeys) addEntity(e *openpgp.Entity) {
	same := func(have *openpgp.Entity) bool {
		return bytes.Equal(have.PrimaryKey.Fingerprint, e.PrimaryKey.Fingerprint)
	}
	if !slices.ContainsFunc(k.write, same) {
		k.write = append(k.write, e)
	}
	sig, _ := e.PrimarySelfSignature()
	k.addSecret(e, e.PrivateKey, sig)
	for _, s := range e.Subkeys {
		k.addSecret(e, s.PrivateKey, s.Sig)
	}
}

// addSecret takes a part of e, if it is a secret key for encryption. Old keys do not say what they are for.
func (k *pgpKeys) addSecret(e *openpgp.Entity, p *packet.PrivateKey, sig *packet.Signature) {
	if p == nil || p.Dummy() || !p.PubKeyAlgo.CanEncrypt() ||
		sig != nil && sig.FlagsValid && !sig.FlagEncryptCommunications && !sig.FlagEncryptStorage {
		return
	}
	k.secret = append(k.secret, &secretKey{key: p, owner: e})
}

// A secretKey decrypts session keys. It is unlocked when first used, for that takes a tenth of a second.
type secretKey struct {
	key   *packet.PrivateKey
	owner *openpgp.Entity
	once  sync.Once
	err   error
}

func (s *secretKey) unlock(passphrase []byte) error {
	s.once.Do(func() {
		switch {
		case !s.key.Encrypted:
		case len(passphrase) == 0:
			s.err = errors.New("it has a passphrase, and none is set")
		case s.key.Decrypt(passphrase) != nil:
			s.err = errors.New("the passphrase does not open it")
		}
	})
	return s.err
}

// canRead reports whether there is a secret key to decrypt with.
func (k *pgpKeys) canRead(ctx context.Context) bool {
	usable := func(s *secretKey) bool { return !s.key.Encrypted || len(k.passphrase) > 0 }
	return slices.ContainsFunc(k.secret, usable) || k.gpg != nil && len(k.gpg.secretKeys(ctx)) > 0
}

func (k *pgpKeys) encrypt(src *watch) (io.ReadCloser, error) {
	r, err := encryptPGP(k.write, src)
	if err != nil {
		return nil, fmt.Errorf("encrypt %s: %w", PGP, err)
	}
	return r, nil
}

// ids lists the keys that encrypt, and the others that decrypt, by the ids that messages ask for.
func (k *pgpKeys) ids() []ID {
	var all []ID
	now := time.Now()
	for _, e := range k.write {
		key, ok := e.EncryptionKey(now)
		if !ok {
			all = append(all, ID{Kind: PGP, ID: e.PrimaryKey.KeyIdString(), Note: whyNotPGP(e, now)})
			continue
		}
		id := ID{Kind: PGP, ID: key.PublicKey.KeyIdString(), Write: true, Note: owner(e)}
		if key.SelfSignature != nil {
			id.Note += expiry(key.PublicKey, key.SelfSignature)
		}
		if sig, _ := e.PrimarySelfSignature(); sig != nil && key.PublicKey != e.PrimaryKey {
			id.Note += expiry(e.PrimaryKey, sig)
		}
		all = append(all, id)
	}
	for _, s := range k.secret {
		id := ID{Kind: PGP, ID: s.key.KeyIdString(), Read: true, Note: owner(s.owner)}
		if s.key.Encrypted && len(k.passphrase) == 0 {
			id.Read = false
			id.Note += ", locked: " + k.name("WALG_PGP_KEY_PASSPHRASE") + " is not set"
		}
		if i := slices.IndexFunc(all, func(have ID) bool { return have.ID == id.ID }); i < 0 {
			all = append(all, id)
		} else if all[i].Read = all[i].Read || id.Read; !id.Read {
			all[i].Note = id.Note
		}
	}
	if k.gpg == nil {
		return all
	}
	for _, secret := range k.gpg.secretKeys(k.ctx) {
		if i := slices.IndexFunc(all, func(have ID) bool { return have.ID == secret }); i >= 0 {
			all[i].Read = true
			all[i].Note += ", in gpg's key ring"
		} else {
			all = append(all, ID{Kind: PGP, ID: secret, Read: true, Note: "in gpg's key ring"})
		}
	}
	return all
}

// owner says whose a key is.
func owner(e *openpgp.Entity) string {
	note := "of " + e.PrimaryKey.KeyIdString()
	if _, id := e.PrimarySelfSignature(); id != nil {
		note += " " + id.Name
	}
	return note
}

func expiry(k *packet.PublicKey, sig *packet.Signature) string {
	if sig.KeyLifetimeSecs == nil || *sig.KeyLifetimeSecs == 0 {
		return ""
	}
	return ", expires " + k.CreationTime.Add(time.Duration(*sig.KeyLifetimeSecs)*time.Second).UTC().Format(time.DateOnly)
}

// unlock tries the passphrase on all secret keys at hand.
func (k *pgpKeys) unlock() error {
	if len(k.passphrase) == 0 {
		return nil
	}
	for _, s := range k.secret {
		if err := s.unlock(k.passphrase); err != nil {
			return fmt.Errorf("secret key %s: %w: see %s", s.key.KeyIdString(), err, k.name("WALG_PGP_KEY_PASSPHRASE"))
		}
	}
	return nil
}
