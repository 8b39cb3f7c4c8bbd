package crypt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// A Keyring is all keys that are set. It is a Key and a RandomReader, for several goroutines at once.
type Keyring struct {
	write      Kind // "": no key can
	allowPlain bool
	name       func(string) string

	// Each is nil if no key of the kind is set.
	age    *ageKeys
	pgp    *pgpKeys
	kms    *kmsKey
	sodium *sodiumKey
}

// Open reads the keys and checks that they can be used. It returns nil and no error when nothing is set; what is set and
// cannot be used is an error that names the setting. It asks gpg for a public key if GPGKeyID is set; KMS it does not ask.
// ctx ends waits for gpg and KMS as long as the Keyring is in use, because Encrypt and Decrypt, which are read from like any
// stream, take none.
func Open(ctx context.Context, o Options) (*Keyring, error) {
	k := &Keyring{allowPlain: o.AllowPlain, name: o.Name}
	if k.name == nil {
		k.name = func(setting string) string { return setting }
	}
	for _, refused := range []struct{ value, setting string }{
		{o.YandexKMSKeyID, "YC_CSE_KMS_KEY_ID"},
		{o.EnvelopePGPKey, "WALG_ENVELOPE_PGP_KEY"},
		{o.EnvelopePGPKeyPath, "WALG_ENVELOPE_PGP_KEY_PATH"},
	} {
		if refused.value != "" {
			return nil, fmt.Errorf("%s: keys in Yandex's KMS are not supported: use %s",
				k.name(refused.setting), k.name("HOLDFAST_AGE_RECIPIENTS"))
		}
	}
	var err error
	if o.Age != (AgeKeys{}) {
		if k.age, err = openAge(o.Age, k.name); err != nil {
			return nil, err
		}
	}
	if pgp := o.PGP; pgp.Key != "" || pgp.KeyPath != "" || pgp.GPGKeyID != "" || pgp.Passphrase != "" {
		if k.pgp, err = openPGP(ctx, pgp, k.name); err != nil {
			return nil, err
		}
	}
	if k.kms, err = openKMS(ctx, o.KMS, k.name); err != nil {
		return nil, err
	}
	if k.sodium, err = openSodium(o.Sodium, k.name); err != nil {
		return nil, err
	}
	if k.age == nil && k.pgp == nil && k.kms == nil && k.sodium == nil {
		if o.Write != "" {
			return nil, fmt.Errorf("%s is %q, but no key is set", k.name("HOLDFAST_ENCRYPTION"), o.Write)
		}
		return nil, nil
	}
	if err := k.choose(o.Write); err != nil {
		return nil, err
	}
	return k, nil
}

// choose decides which kind writes.
func (k *Keyring) choose(want Kind) error {
	var can []Kind
	for _, w := range []struct {
		kind Kind
		can  bool
	}{
		{Age, k.age != nil && len(k.age.recipients) > 0},
		{PGP, k.pgp != nil && len(k.pgp.write) > 0},
		{KMS, k.kms != nil},
		{Sodium, k.sodium != nil},
	} {
		if w.can {
			can = append(can, w.kind)
		}
	}
	switch {
	case want != "" && !slices.Contains([]Kind{Age, PGP, KMS, Sodium}, want):
		return fmt.Errorf("%s %q: want %s, %s, %s or %s", k.name("HOLDFAST_ENCRYPTION"), want, Age, PGP, KMS, Sodium)
	case want != "" && !slices.Contains(can, want):
		return fmt.Errorf("%s is %q, but no key of it that encrypts is set", k.name("HOLDFAST_ENCRYPTION"), want)
	case want == "" && len(can) > 1:
		return fmt.Errorf("keys of %v are set, and one kind writes: say which in %s", can, k.name("HOLDFAST_ENCRYPTION"))
	}
	k.write = want
	if want == "" && len(can) == 1 {
		k.write = can[0]
	}
	return nil
}

// Encrypt implements Key with the keys of the kind that writes.
func (k *Keyring) Encrypt(src io.Reader) io.ReadCloser {
	open := func(*watch) (io.ReadCloser, error) {
		return nil, fmt.Errorf("no key that encrypts is set, only such that decrypt: see %s", k.name("HOLDFAST_AGE_RECIPIENTS"))
	}
	switch k.write {
	case Age:
		open = k.age.encrypt
	case PGP:
		open = k.pgp.encrypt
	case KMS:
		open = k.kms.encrypt
	case Sodium:
		open = k.sodium.encrypt
	}
	return newStream(src, open)
}

// Decrypt implements Key with whatever key fits.
func (k *Keyring) Decrypt(src io.Reader) io.ReadCloser { return newStream(src, k.open) }

// open finds out what src holds, and decrypts it.
func (k *Keyring) open(src *watch) (io.ReadCloser, error) {
	in := newInput(src, k.lookAhead())
	o := &object{in: in}
	begin, err := in.Peek(k.lookAhead())
	if err != nil && err != io.EOF {
		o.Close()
		return nil, err
	}
	if o.kind, err = k.kind(begin, err == io.EOF); err == nil {
		switch o.kind {
		case Age:
			o.plain, err = k.age.decrypt(src, in)
		case PGP:
			o.plain, err = k.pgp.decrypt(src, in)
		case KMS:
			o.plain, err = k.kms.decrypt(src, in)
		case Sodium:
			o.plain, err = k.sodium.decrypt(src, in)
		default:
			o.plain = io.NopCloser(in)
		}
		err = o.judge(err)
	}
	if err != nil {
		o.Close()
		return nil, err
	}
	return o, nil
}

// lookAhead returns how many bytes tell what an object is.
func (k *Keyring) lookAhead() int {
	if k.kms != nil {
		return kmsAhead
	}
	return lookAhead
}

// kind returns the kind of an object that begins with begin, plainText included. It is an error if it cannot be read:
// without a key of that kind, or not encrypted.
func (k *Keyring) kind(begin []byte, whole bool) (Kind, error) {
	kind, sure := recognise(begin, whole)
	if !sure && k.sodium != nil && opensSodium(&k.sodium.key, begin) {
		return Sodium, nil
	}
	switch kind {
	case yandexKMS, envelopePGP:
		return "", fmt.Errorf("the object is encrypted with %s, which is not supported: read it with WAL-G", kind)
	case Age:
		if k.age == nil {
			return "", k.noKey(kind, "HOLDFAST_AGE_IDENTITIES")
		}
		return Age, nil // its own errors say for whom it is
	case PGP:
		if k.pgp == nil {
			return "", k.noKey(kind, "WALG_PGP_KEY")
		}
		return PGP, nil
	case KMS:
		if k.kms != nil {
			return KMS, nil
		}
	case plainText:
		if k.allowPlain {
			return plainText, nil
		}
		return "", fmt.Errorf("the object is not encrypted (it is %s), and a key is set: %s lets such be read",
			plainName(begin), k.name("HOLDFAST_ALLOW_UNENCRYPTED"))
	}
	switch {
	case len(begin) == 0 && !k.allowPlain:
		return "", fmt.Errorf("the object is empty, which nothing encrypted is: %w", io.ErrUnexpectedEOF)
	case k.sodium != nil && len(begin) > 0:
		return Sodium, nil
	case k.allowPlain:
		return plainText, nil
	case whole && k.kms != nil:
		return KMS, nil // which says what is missing
	}
	return "", fmt.Errorf("the object does not begin like anything that is encrypted with %s: it is not encrypted, or damaged, "+
		"or of libsodium or KMS: see %s and %s", k.kinds(), k.name("WALG_LIBSODIUM_KEY"), k.name("WALG_CSE_KMS_ID"))
}

func (k *Keyring) noKey(kind Kind, setting string) error {
	return fmt.Errorf("the object is encrypted with %s, of which no key is set: see %s", kind, k.name(setting))
}

// kinds lists the kinds of which keys are set.
func (k *Keyring) kinds() string {
	var all []string
	for _, has := range []struct {
		kind Kind
		set  bool
	}{{Age, k.age != nil}, {PGP, k.pgp != nil}, {KMS, k.kms != nil}, {Sodium, k.sodium != nil}} {
		if has.set {
			all = append(all, string(has.kind))
		}
	}
	return strings.Join(all, ", ")
}

// DecryptAt implements RandomReader: an object encrypted with age can be read anywhere, and so can one that is not
// encrypted, if that is allowed.
func (k *Keyring) DecryptAt(src io.ReaderAt, size int64) (plain io.ReaderAt, plainSize int64, err error) {
	begin := make([]byte, max(min(size, int64(k.lookAhead())), 0))
	if err := readAt(src, begin, 0); err != nil {
		return nil, 0, err
	}
	switch kind, err := k.kind(begin, int64(len(begin)) == size); {
	case err != nil:
		return nil, 0, err
	case kind == plainText:
		return src, size, nil
	case kind != Age:
		return nil, 0, &SequentialError{kind}
	}
	if plain, plainSize, err = k.age.decryptAt(src, size, begin); err != nil {
		err = fmt.Errorf("decrypt %s: %w", Age, err)
	}
	return plain, plainSize, err
}

// IDs lists the keys, those that write first. It may ask gpg which secret keys it has.
func (k *Keyring) IDs() []ID {
	var all []ID
	if k.age != nil {
		all = append(all, k.age.ids...)
	}
	if k.pgp != nil {
		all = append(all, k.pgp.ids()...)
	}
	if k.kms != nil {
		all = append(all, k.kms.ids()...)
	}
	if k.sodium != nil {
		all = append(all, k.sodium.ids()...)
	}
	for i := range all {
		all[i].Write = all[i].Write && all[i].Kind == k.write
	}
	slices.SortStableFunc(all, func(a, b ID) int {
		switch {
		case a.Write == b.Write:
			return 0
		case a.Write:
			return -1
		}
		return 1
	})
	return all
}

// Probe encrypts a few bytes as an object is encrypted and, if there is a key to read them, decrypts them. It asks
// everything that is otherwise asked when needed: passphrases, gpg and KMS.
func (k *Keyring) Probe(ctx context.Context) (Probe, error) {
	if k.pgp != nil {
		if err := k.pgp.unlock(); err != nil {
			return Probe{}, err
		}
	}
	if k.write == "" {
		return Probe{Note: "no key that encrypts is set"}, nil
	}
	probe := bytes.Repeat([]byte("holdfast probe\n"), 1000)
	sealed, err := readAll(ctx, k.Encrypt(bytes.NewReader(probe)))
	if err != nil {
		return Probe{}, err
	}
	p := Probe{Wrote: k.write}
	if k.write == KMS {
		key, err := k.kms.dataKey()
		if n := len(key.blob); err == nil && n != kmsBlob {
			p.Note = fmt.Sprintf("KMS encrypts the data key to %d bytes, and WAL-G reads only %d", n, kmsBlob)
		}
	}
	switch {
	case k.write == Age && len(k.age.identities) == 0:
		p.Note = "no identity of age is set, so that this host can write and not read"
		return p, nil
	case k.write == PGP && !k.pgp.canRead(ctx):
		p.Note = "no secret key of OpenPGP can be used, so that this host can write and not read"
		return p, nil
	}
	got, err := readAll(ctx, k.Decrypt(bytes.NewReader(sealed)))
	if err != nil {
		return p, err
	}
	if !bytes.Equal(got, probe) {
		return p, errors.New("the probe came back changed")
	}
	p.Read = true
	return p, nil
}

// readAll reads r, which asks no more once ctx is done, and closes it.
func readAll(ctx context.Context, r io.ReadCloser) ([]byte, error) {
	defer r.Close()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}
