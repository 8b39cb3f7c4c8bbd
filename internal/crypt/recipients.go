package crypt

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// RecipientsAhead is how much of the beginning of an object Recipients should be given, in bytes.
const RecipientsAhead = 32 << 10

// Recipients says for which keys an object is encrypted that begins with begin, as far as that shows without a key: of OpenPGP the ids of the keys, where they
// are not hidden; of age the kinds of the recipients, and for SSH keys the tag of each; a passphrase. It is empty for kinds that tell nothing, and where begin
// is that of nothing encrypted. At most 64 are told.
func Recipients(begin []byte) (kind Kind, who []string) {
	kind, _ = recognise(begin, false)
	switch kind {
	case Age:
		return kind, ageRecipients(begin)
	case PGP:
		return kind, pgpRecipientIDs(begin)
	case KMS:
		return kind, nil
	}
	return "", nil
}

// maxRecipients bounds how many are told.
const maxRecipients = 64

// ageRecipients reads the stanzas of an age header (age-encryption.org/v1): lines that begin with an arrow, up to one that begins with three dashes.
func ageRecipients(begin []byte) (who []string) {
	for line := range bytes.Lines(begin) {
		text := strings.TrimRight(string(line), "\n")
		if strings.HasPrefix(text, "---") {
			break
		}
		fields := strings.Fields(strings.TrimPrefix(text, "-> "))
		if !strings.HasPrefix(text, "-> ") || len(fields) == 0 || strings.HasSuffix(fields[0], "-grease") || len(who) == maxRecipients {
			continue
		}
		one := fields[0]
		if strings.HasPrefix(one, "ssh-") && len(fields) > 1 {
			one += " " + fields[1]
		}
		who = append(who, fmt.Sprintf("%.60s", one))
	}
	return who
}

// pgpRecipientIDs reads the packets with encrypted session keys that an OpenPGP message begins with.
func pgpRecipientIDs(begin []byte) (who []string) {
	packets := packet.NewReader(bytes.NewReader(begin))
	for len(who) < maxRecipients {
		p, err := packets.Next()
		if err != nil {
			return who
		}
		switch p := p.(type) {
		case *packet.EncryptedKey:
			id := fmt.Sprintf("%016X", p.KeyId)
			if p.KeyId == 0 {
				id = "(hidden)"
			}
			who = append(who, id)
		case *packet.SymmetricKeyEncrypted:
			who = append(who, "(a passphrase)")
		default:
			return who
		}
	}
	return who
}

// IsPlain reports whether an object that begins with begin is surely not encrypted: it is compressed, or tar, or WAL.
func IsPlain(begin []byte) bool { return plainName(begin) != "" }
