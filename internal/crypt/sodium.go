package crypt

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
)

// A sodiumKey is the key of libsodium's stream.
type sodiumKey struct {
	key     [sodiumKeySize]byte
	setting string // where it comes from
}

func openSodium(o SodiumKey, name func(string) string) (*sodiumKey, error) {
	k := &sodiumKey{setting: name("WALG_LIBSODIUM_KEY")}
	text := []byte(o.Key)
	switch {
	case o.Key != "" && o.Path != "":
		return nil, fmt.Errorf("%s and %s are both set: there is one key", k.setting, name("WALG_LIBSODIUM_KEY_PATH"))
	case o.Path != "":
		k.setting = name("WALG_LIBSODIUM_KEY_PATH")
		b, err := os.ReadFile(o.Path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", k.setting, err)
		}
		text = bytes.TrimSpace(b)
	case o.Key == "":
		if o.Transform != "" && o.Transform != "none" {
			return nil, fmt.Errorf("%s is set, but neither %s nor %s",
				name("WALG_LIBSODIUM_KEY_TRANSFORM"), k.setting, name("WALG_LIBSODIUM_KEY_PATH"))
		}
		return nil, nil
	}
	if err := k.parse(text, o.Transform); err == errTransform {
		return nil, fmt.Errorf("%s %q: %w", name("WALG_LIBSODIUM_KEY_TRANSFORM"), o.Transform, err)
	} else if err != nil {
		return nil, fmt.Errorf("%s: %w", k.setting, err)
	}
	return k, nil
}

var errTransform = errors.New("want none, base64 or hex")

// parse reads the key as WAL-G does. No error says what is in text.
func (k *sodiumKey) parse(text []byte, transform string) error {
	var key []byte
	var err error
	switch transform {
	case "", "none":
		if len(text) < 25 {
			return fmt.Errorf("a key of %d bytes is too short: want 32, and at least 25", len(text))
		}
		copy(k.key[:], text) // longer ones are cut, shorter ones end in zeros
		return nil
	case "base64":
		key, err = base64.StdEncoding.DecodeString(string(text))
	case "hex":
		key, err = hex.DecodeString(string(text))
	default:
		return errTransform
	}
	switch {
	case err != nil:
		return fmt.Errorf("the key is not %s", transform)
	case len(key) != sodiumKeySize:
		return fmt.Errorf("the key is %d bytes in %s: want %d", len(key), transform, sodiumKeySize)
	}
	copy(k.key[:], key)
	return nil
}

func (k *sodiumKey) encrypt(src *watch) (io.ReadCloser, error) {
	r, err := encryptSodium(&k.key, src)
	if err != nil {
		return nil, fmt.Errorf("encrypt %s: %w", Sodium, err)
	}
	return r, nil
}

func (k *sodiumKey) decrypt(_ *watch, in *bufio.Reader) (io.ReadCloser, error) {
	return decryptSodium(&k.key, k.setting, in)
}

func (k *sodiumKey) ids() []ID {
	return []ID{{Kind: Sodium, ID: "the key in " + k.setting, Write: true, Read: true}}
}
