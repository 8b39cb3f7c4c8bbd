// Package crypt encrypts and decrypts the objects of an archive with the operator's keys: age, OpenPGP, AWS KMS envelopes,
// libsodium.
//
// A Keyring holds all keys that are set. It writes with one kind of them and reads what any of them can read, telling kinds
// apart by the first bytes of an object. Both directions pull: reading from what Encrypt or Decrypt returned reads the
// source as far as needed, in the caller's goroutine. Memory is a few buffers of at most 128 KiB per stream; an OpenPGP
// message of others, of the kind with authenticated pieces, may ask for 8 MiB.
//
// Whatever the kind, a stream that ends early, at any byte, is an error (io.ErrUnexpectedEOF where that can be told from
// damage), and so are a flipped bit and bytes behind the end. Age, libsodium and KMS streams yield only bytes that are
// authentic; an OpenPGP message is authenticated as a whole, at its end. In either case what was read before an error must
// not be relied on.
//
// The formats are those of WAL-G and of the age, gpg and libsodium programs: age-encryption.org/v1, RFC 4880 with RFC 9580,
// crypto_secretstream_xchacha20poly1305, DARE 2.0. No error and no String has a secret in it.
package crypt

import "io"

// A Key encrypts and decrypts. Both directions pull in the caller's goroutine; errors come from Read, those of src as they are.
// The caller closes what it got, at any time, which gives buffers back and leaves src alone. One stream may not be used by
// several goroutines at once; a Key may.
type Key interface {
	// Encrypt returns the cipher text of what src yields.
	Encrypt(src io.Reader) io.ReadCloser
	// Decrypt returns the plain text of the one encrypted object that src holds. It reads src to the end.
	Decrypt(src io.Reader) io.ReadCloser
}

// A RandomReader is a Key whose cipher text can be decrypted from any offset.
type RandomReader interface {
	Key
	// DecryptAt returns the plain text, and its length in bytes, of the encrypted object of size bytes that src holds. The plain
	// text may be read by several goroutines at once, if src may. Each read asks src once, for all the cipher text that it needs
	// (at most 1 MiB at a time). An object that can be read from its beginning only is a *SequentialError.
	DecryptAt(src io.ReaderAt, size int64) (plain io.ReaderAt, plainSize int64, err error)
}

// A Kind is a format of encryption and the keys that go with it.
type Kind string

const (
	Age    Kind = "age"       // age-encryption.org/v1, which we recommend: public keys write, any part can be read alone
	PGP    Kind = "openpgp"   // OpenPGP messages with MDC, as gpg and WAL-G write them
	KMS    Kind = "aws-kms"   // a data key encrypted by AWS KMS, then DARE 2.0
	Sodium Kind = "libsodium" // secretstream with one secret key
)

// Options are the operator's keys, as text or as files, one group for each kind. The names in the comments are those of the
// settings as errors tell them.
type Options struct {
	// Write says which kind encrypts. It may be empty unless keys of several kinds can: HOLDFAST_ENCRYPTION.
	Write Kind
	// AllowPlain makes Decrypt pass on an object that is not encrypted, so that encryption can be turned on over an archive:
	// HOLDFAST_ALLOW_UNENCRYPTED. Whoever can write to the archive can then have his own bytes restored. Where a libsodium
	// key is set, which has no mark to know its objects by, only what is recognised is passed: zstd, lz4, gzip, lzop, lzma,
	// tar and WAL.
	AllowPlain bool

	Age    AgeKeys
	PGP    PGPKeys
	KMS    KMSKey
	Sodium SodiumKey

	// What WAL-G has and we refuse. Any of them set makes Open fail.
	YandexKMSKeyID     string // YC_CSE_KMS_KEY_ID
	EnvelopePGPKey     string // WALG_ENVELOPE_PGP_KEY
	EnvelopePGPKeyPath string // WALG_ENVELOPE_PGP_KEY_PATH

	// Name returns what the operator calls the setting that has the given name in these comments; nil means just so.
	Name func(setting string) string
}

// String tells no secret.
func (o Options) String() string { return "keys, not shown" }

// AgeKeys are keys of age. Texts hold one key per line, or several between commas; empty lines and those that begin with # are
// skipped, and a backslash followed by n is a line break.
//
// A recipient is a public key: age1… (X25519), age1pq1… (post-quantum; not to be mixed with others), ssh-ed25519 or ssh-rsa.
// All of them can decrypt what is written. An identity is a secret key: AGE-SECRET-KEY-1…, AGE-SECRET-KEY-PQ-1… or an SSH
// key in PEM without passphrase.
type AgeKeys struct {
	Recipients     string // HOLDFAST_AGE_RECIPIENTS
	RecipientsPath string // HOLDFAST_AGE_RECIPIENTS_PATH
	Identities     string // HOLDFAST_AGE_IDENTITIES
	IdentitiesPath string // HOLDFAST_AGE_IDENTITIES_PATH
}

// PGPKeys are keys of OpenPGP. Each of Key, KeyPath and GPGKeyID may hold several keys; what is written can be decrypted by
// all. Public keys suffice to write. Secret keys are in Key and KeyPath, or in gpg's key ring: then gpg is asked for the
// session key of each object, or once for its secret key, if it has a passphrase and can be exported.
type PGPKeys struct {
	Key        string // armored, or with a backslash and n for each line break: WALG_PGP_KEY
	KeyPath    string // a file, armored or binary: WALG_PGP_KEY_PATH
	Passphrase string // of the secret keys, also of those in gpg's key ring: WALG_PGP_KEY_PASSPHRASE
	GPGKeyID   string // of a key in gpg's key ring, in any form gpg takes: WALG_GPG_KEY_ID

	GPGProgram string // "" is gpg
	GPGHome    string // gpg's home directory; "" is gpg's own choice, from GNUPGHOME
}

// SodiumKey is the one secret key of libsodium's secretstream. Key or Path is set, not both.
type SodiumKey struct {
	Key       string // as it is: WALG_LIBSODIUM_KEY
	Path      string // of a file, white space around the key being cut off: WALG_LIBSODIUM_KEY_PATH
	Transform string // how the key is to be read, none, base64 or hex; "" is none: WALG_LIBSODIUM_KEY_TRANSFORM
}

// KMSKey is a key of AWS KMS. What is empty of the rest is found by the AWS SDK, in the usual variables, files and roles.
type KMSKey struct {
	KeyID           string // id, alias or ARN; "" is no KMS: WALG_CSE_KMS_ID
	Region          string // WALG_CSE_KMS_REGION
	Endpoint        string // a URL, for services other than AWS's
	AccessKeyID     string // AWS_ACCESS_KEY_ID
	SecretAccessKey string // AWS_SECRET_ACCESS_KEY
	SessionToken    string // AWS_SESSION_TOKEN
}

// An ID tells people of one key.
type ID struct {
	Kind  Kind
	ID    string // such as an age recipient, or the long id of the OpenPGP key that a message asks for; never a secret
	Write bool   // what is written can be decrypted with it
	Read  bool   // it can decrypt what we read
	Note  string // what else is worth knowing, such as whose it is and when it expires; may be empty
}

// A Probe is what Keyring.Probe found.
type Probe struct {
	Wrote Kind   // "": no key can write
	Read  bool   // the probe was decrypted again
	Note  string // why it was not, or what else is worth knowing; may be empty
}

// A SequentialError says that an object cannot be read from any offset.
type SequentialError struct{ Kind Kind }

func (e *SequentialError) Error() string {
	return "what is encrypted with " + string(e.Kind) + " can be read from its beginning only"
}
