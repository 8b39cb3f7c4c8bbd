package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"holdfast/internal/atomicfile"
	"holdfast/internal/config"
	"holdfast/internal/crypt"
)

// openKeys opens the keys that the settings name; nil when they name none.
func (a *app) openKeys(ctx context.Context, s *config.Settings) (*crypt.Keyring, error) {
	e, aws := s.Encryption, s.Storage.S3
	keys, err := crypt.Open(ctx, crypt.Options{
		Write: crypt.Kind(e.Kind), AllowPlain: e.AllowPlain,
		Age: crypt.AgeKeys{Recipients: e.AgeRecipients, RecipientsPath: e.AgeRecipientsPath, Identities: e.AgeIdentities, IdentitiesPath: e.AgeIdentitiesPath},
		PGP: crypt.PGPKeys{Key: e.PGPKey, KeyPath: e.PGPKeyPath, Passphrase: e.PGPPassphrase, GPGKeyID: e.GPGKeyID},
		KMS: crypt.KMSKey{KeyID: e.KMSKeyID, Region: e.KMSRegion,
			AccessKeyID: aws.AccessKeyID, SecretAccessKey: aws.SecretAccessKey, SessionToken: aws.SessionToken},
		Sodium: crypt.SodiumKey{Key: e.SodiumKey, Path: e.SodiumKeyPath, Transform: e.SodiumTransform},
		Name:   s.Called,
	})
	if err != nil {
		return nil, &advised{err, "`holdfast key check` tries the keys without touching the archive"}
	}
	return keys, nil
}

// writes reports whether what keys encrypt cannot be read with them, and whether they have a public part, with which other hosts may be such. That they
// cannot encrypt at all is an error.
func writes(keys *crypt.Keyring) (only, public bool, err error) {
	ids := keys.IDs()
	if !slices.ContainsFunc(ids, func(id crypt.ID) bool { return id.Write }) {
		return false, false, &advised{errors.New("no key that encrypts is set, only such that decrypt"),
			"set the public key too, as in HOLDFAST_AGE_RECIPIENTS or WALG_PGP_KEY_PATH: nothing is stored in clear beside what is encrypted"}
	}
	public = slices.ContainsFunc(ids, func(id crypt.ID) bool { return id.Write && (id.Kind == crypt.Age || id.Kind == crypt.PGP) })
	return !slices.ContainsFunc(ids, func(id crypt.ID) bool { return id.Write && id.Read }), public, nil
}

// encrypts reports whether there are keys here, and whether they can only encrypt.
func (a *app) encrypts(ctx context.Context, s *config.Settings) (encrypted, only bool, err error) {
	keys, err := a.openKeys(ctx, s)
	if err != nil || keys == nil {
		return false, false, err
	}
	only, _, _ = writes(keys) // an error is that nothing can be encrypted here, as where backups are restored
	return true, only, nil
}

func (a *app) key() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key COMMAND",
		Short: "Make keys, and check those that are set",
		Long: "Keys encrypt what is archived. We recommend age: the host of the database needs the public key alone, so that it can archive and\n" +
			"cannot read what it archived. docs/security.md says how to go about it.",
		Example: "  holdfast key generate /media/safe/identity\n  holdfast key check",
		Args:    cobra.ArbitraryArgs,
		RunE:    a.onlyBelow("it is `key generate` or `key check`"),
	}
	cmd.AddCommand(a.keyGenerate(), a.keyCheck())
	return cmd
}

func (a *app) keyGenerate() *cobra.Command {
	return &cobra.Command{
		Use:   "generate FILE",
		Short: "Make a key pair of age",
		Long: "Makes a key pair of age. The identity, which decrypts, goes to FILE, which must not be there yet and which only its owner may read. The\n" +
			"recipient, which encrypts and is no secret, is printed: set HOLDFAST_AGE_RECIPIENTS to it. Make the pair on a host that may read the\n" +
			"archive, not on that of the database, and keep a copy of FILE: without it what was archived cannot be read by anybody.",
		Example: "  holdfast key generate ./identity\n  HOLDFAST_AGE_RECIPIENTS=$(holdfast key generate ./identity)",
		Args:    a.args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			id, err := age.GenerateX25519Identity()
			if err != nil {
				return err
			}
			text := fmt.Sprintf("# made by holdfast on %s\n# public key: %s\n%s\n", time.Now().UTC().Format(time.DateOnly), id.Recipient(), id)
			if err := writeNew(args[0], text); err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.env.Stdout, id.Recipient())
			return err
		},
	}
}

// writeNew makes a file that only its owner may read, durably. One that is there already stays as it is.
func writeNew(path, text string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return atomicfile.SyncDir(filepath.Dir(path))
}

// keyReport is what `key check` found.
type keyReport struct {
	Keys  []keyLine  `json:"keys"`
	Wrote crypt.Kind `json:"wrote,omitempty"` // the kind that encrypted the probe
	Read  bool       `json:"read"`            // it was decrypted again
	Note  string     `json:"note,omitempty"`
}

type keyLine struct {
	Kind  crypt.Kind `json:"kind"`
	ID    string     `json:"id"`
	Write bool       `json:"write"`
	Read  bool       `json:"read"`
	Note  string     `json:"note,omitempty"`
}

func (a *app) keyCheck() *cobra.Command {
	var write, read, asJSON bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Encrypt and decrypt a probe with the keys that are set",
		Long: "Lists the keys that are set, says which of them can read what is written now and which can read it here, and encrypts and decrypts a\n" +
			"probe. It asks gpg and KMS where they have keys, and does not touch the archive.\n\n" +
			"Exit status: 0; 1 when no key is set, when a key that is set cannot be used, or when --write or --read ask for what cannot be done.",
		Example: "  holdfast key check\n  holdfast key check --write   # on the host of the database\n  holdfast key check --read    # where backups are restored",
		Args:    a.args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.load(cmd)
			if err != nil {
				return err
			}
			report, err := a.checkKeys(cmd.Context(), s)
			if report == nil {
				return err
			}
			printed := a.printKeys(report)
			if asJSON {
				printed = a.printJSON(report)
			}
			if err := errors.Join(printed, err); err != nil {
				return err
			}
			reads := slices.ContainsFunc(report.Keys, func(k keyLine) bool { return k.Read })
			switch {
			case write && report.Wrote == "":
				return &advised{errors.New("no key that is set encrypts"), "set a public key, as in HOLDFAST_AGE_RECIPIENTS"}
			case read && !reads:
				return &advised{errors.New("no key that is set decrypts"), "set the secret key, as in HOLDFAST_AGE_IDENTITIES_PATH"}
			case read && report.Wrote != "" && !report.Read:
				return &advised{errors.New("what is written with the keys that are set cannot be read with them"), "set the secret key that belongs to the public one"}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&write, "write", false, "fail unless this host can encrypt")
	cmd.Flags().BoolVar(&read, "read", false, "fail unless this host can decrypt, also what it encrypts itself")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// checkKeys tries the keys. With an error the report, where there is one, says what is known all the same.
func (a *app) checkKeys(ctx context.Context, s *config.Settings) (*keyReport, error) {
	keys, err := a.openKeys(ctx, s)
	if bad := (*advised)(nil); errors.As(err, &bad) {
		return nil, bad.error // this is the command that its hint names
	}
	if keys == nil {
		return nil, &advised{errors.New("no key is set: what is archived is not encrypted"), "`holdfast key generate` makes one; docs/security.md says what to do with it"}
	}
	r := &keyReport{}
	for _, id := range keys.IDs() {
		r.Keys = append(r.Keys, keyLine{id.Kind, id.ID, id.Write, id.Read, id.Note})
	}
	p, err := keys.Probe(ctx)
	r.Wrote, r.Read, r.Note = p.Wrote, p.Read, p.Note
	return r, err
}

// printKeys prints what was found for people.
func (a *app) printKeys(r *keyReport) error {
	w := tabwriter.NewWriter(a.env.Stdout, 0, 0, 1, ' ', 0)
	fmt.Fprintln(w, "kind\tencrypts\tdecrypts\tkey")
	mark := map[bool]string{true: "yes", false: "no"}
	for _, k := range r.Keys {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", k.Kind, mark[k.Write], mark[k.Read], strings.TrimSpace(cell(k.ID)+" "+cell(k.Note)))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	line := "a probe was encrypted with " + string(r.Wrote) + " and decrypted again"
	switch {
	case r.Wrote == "":
		line = "nothing was encrypted"
	case !r.Read:
		line = "a probe was encrypted with " + string(r.Wrote) + ", and cannot be decrypted here"
	}
	if r.Note != "" {
		line += ": " + r.Note
	}
	_, err := fmt.Fprintln(a.env.Stdout, line)
	return err
}
