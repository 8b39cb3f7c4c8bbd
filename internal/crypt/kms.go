package crypt

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/minio/sio"
)

const (
	kmsWait = time.Minute // for one answer, its retries included
	kmsKeys = 256         // data keys that are remembered for reading: WAL-G makes one for each WAL segment
)

// A kmsKey asks AWS KMS for data keys. An object is a data key, encrypted by KMS, and what is encrypted with it as DARE 2.0.
// One data key serves all that a process writes: its streams have random nonces of 95 bits.
type kmsKey struct {
	ctx    context.Context
	client *kms.Client
	id     string
	name   func(string) string

	mu   sync.Mutex
	own  dataKey           // made when first needed
	read map[string][]byte // by what KMS encrypted
}

// A dataKey is 32 bytes, and what KMS made of them.
type dataKey struct{ plain, blob []byte }

func openKMS(ctx context.Context, o KMSKey, name func(string) string) (*kmsKey, error) {
	if o.KeyID == "" {
		if o.Region != "" {
			return nil, fmt.Errorf("%s is set, but not %s", name("WALG_CSE_KMS_REGION"), name("WALG_CSE_KMS_ID"))
		}
		return nil, nil
	}
	if (o.AccessKeyID == "") != (o.SecretAccessKey == "") {
		return nil, fmt.Errorf("of %s and %s one is missing", name("AWS_ACCESS_KEY_ID"), name("AWS_SECRET_ACCESS_KEY"))
	}
	var load []func(*config.LoadOptions) error
	if part := strings.Split(o.KeyID, ":"); o.Region == "" && len(part) > 5 && part[0] == "arn" {
		o.Region = part[3]
	}
	if o.Region != "" {
		load = append(load, config.WithRegion(o.Region))
	}
	if o.AccessKeyID != "" {
		fixed := credentials.NewStaticCredentialsProvider(o.AccessKeyID, o.SecretAccessKey, o.SessionToken)
		load = append(load, config.WithCredentialsProvider(fixed))
	}
	cfg, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return nil, fmt.Errorf("%s: load the AWS configuration: %w", name("WALG_CSE_KMS_ID"), err)
	}
	if cfg.Region == "" {
		return nil, fmt.Errorf("%s: the region is not known: set %s", name("WALG_CSE_KMS_ID"), name("WALG_CSE_KMS_REGION"))
	}
	client := kms.NewFromConfig(cfg, func(k *kms.Options) {
		if o.Endpoint != "" {
			k.BaseEndpoint = &o.Endpoint
		}
	})
	return &kmsKey{ctx: ctx, client: client, id: o.KeyID, name: name, read: map[string][]byte{}}, nil
}

// dataKey returns the data key to write with.
func (k *kmsKey) dataKey() (dataKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.own.plain != nil {
		return k.own, nil
	}
	ctx, cancel := context.WithTimeout(k.ctx, kmsWait)
	defer cancel()
	out, err := k.client.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &k.id, KeySpec: types.DataKeySpecAes256})
	if err != nil {
		return dataKey{}, fmt.Errorf("ask KMS for a data key: %w: see %s and %s", err,
			k.name("WALG_CSE_KMS_ID"), k.name("WALG_CSE_KMS_REGION"))
	}
	if len(out.Plaintext) != 32 || len(out.CiphertextBlob) < kmsBlobMin || len(out.CiphertextBlob) > kmsBlobMax {
		return dataKey{}, fmt.Errorf("KMS gave a data key of %d bytes in %d: want 32 in %d to %d",
			len(out.Plaintext), len(out.CiphertextBlob), kmsBlobMin, kmsBlobMax)
	}
	k.own = dataKey{out.Plaintext, out.CiphertextBlob}
	k.read[string(k.own.blob)] = k.own.plain
	return k.own, nil
}

// open returns the data key that KMS encrypted to blob.
func (k *kmsKey) open(blob []byte) ([]byte, error) {
	k.mu.Lock()
	plain := k.read[string(blob)]
	k.mu.Unlock()
	if plain != nil {
		return plain, nil
	}
	ctx, cancel := context.WithTimeout(k.ctx, kmsWait)
	defer cancel()
	out, err := k.client.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob})
	if err != nil {
		return nil, fmt.Errorf("KMS does not decrypt the data key: %w: the object is of another key, or damaged, "+
			"or this role may not: see %s and %s", err, k.name("WALG_CSE_KMS_ID"), k.name("WALG_CSE_KMS_REGION"))
	}
	if len(out.Plaintext) != 32 {
		return nil, fmt.Errorf("KMS gave a data key of %d bytes: want 32", len(out.Plaintext))
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.read) >= kmsKeys {
		clear(k.read)
	}
	k.read[string(blob)] = out.Plaintext
	return out.Plaintext, nil
}

func dare(key []byte) sio.Config {
	return sio.Config{MinVersion: sio.Version20, MaxVersion: sio.Version20, Key: key}
}

func (k *kmsKey) encrypt(src *watch) (io.ReadCloser, error) {
	first := make([]byte, 1)
	if _, err := fill(src, first); err == io.EOF {
		return nil, fmt.Errorf("encrypt %s: the format cannot tell an empty object from one that was cut short", KMS)
	} else if err != nil {
		return nil, err
	}
	key, err := k.dataKey()
	if err != nil {
		return nil, fmt.Errorf("encrypt %s: %w", KMS, err)
	}
	r, err := sio.EncryptReader(io.MultiReader(bytes.NewReader(first), src), dare(key.plain))
	if err != nil {
		return nil, fmt.Errorf("encrypt %s: %w", KMS, err)
	}
	return io.NopCloser(struct{ io.Reader }{io.MultiReader(bytes.NewReader(key.blob), r)}), nil
}

func (k *kmsKey) decrypt(_ *watch, in *bufio.Reader) (io.ReadCloser, error) {
	begin, err := in.Peek(kmsAhead)
	if err != nil && err != io.EOF {
		return nil, err
	}
	at := findDARE(begin, err == io.EOF)
	if at < 0 {
		return nil, fmt.Errorf("nothing that KMS or DARE would write: damaged, or the end is missing: %w", io.ErrUnexpectedEOF)
	}
	blob := bytes.Clone(begin[:at])
	if _, err := in.Discard(at); err != nil {
		return nil, err
	}
	key, err := k.open(blob)
	if err != nil {
		return nil, err
	}
	r, err := sio.DecryptReader(in, dare(key))
	if err != nil {
		return nil, err
	}
	return io.NopCloser(dareReader{r}), nil
}

// A dareReader words the library's errors.
type dareReader struct{ io.Reader }

func (r dareReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if damage := (sio.Error{}); errors.As(err, &damage) {
		err = fmt.Errorf("damaged, or the end is missing: %w", err)
	}
	return n, err
}

func (k *kmsKey) ids() []ID {
	note := "in " + k.client.Options().Region + "; whether its role may, only KMS knows"
	return []ID{{Kind: KMS, ID: k.id, Write: true, Read: true, Note: note}}
}
