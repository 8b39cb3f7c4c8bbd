package crypt

// What tests of the formats need.

const SodiumChunk = sodiumChunk

// SealSodium encrypts text as one stream with a header that is given.
func SealSodium(key [32]byte, header, text []byte) ([]byte, error) {
	s, err := newSecretstream(&key, header)
	if err != nil {
		return nil, err
	}
	out := append([]byte(nil), header...)
	for {
		n := min(len(text), sodiumChunk)
		tag := byte(tagMessage)
		if n < sodiumChunk {
			tag = tagFinal
		}
		chunk, err := s.seal(append(make([]byte, 64, 64+n+16), text[:n]...), tag)
		if err != nil {
			return nil, err
		}
		if out, text = append(out, chunk...), text[n:]; tag == tagFinal {
			return out, nil
		}
	}
}

// Recognise exports recognise.
func Recognise(begin []byte, whole bool) (Kind, bool) { return recognise(begin, whole) }

// PlainText is what Recognise says of what is not encrypted.
const PlainText = plainText
