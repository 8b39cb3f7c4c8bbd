//go:build depsonly

// Package deps keeps modules in go.mod that packages to come import; nothing is built from it.
package deps

import (
	_ "cloud.google.com/go/storage"
	_ "filippo.io/age"
	_ "filippo.io/age/agessh"
	_ "filippo.io/age/armor"
	_ "github.com/Azure/azure-sdk-for-go/sdk/azcore"
	_ "github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	_ "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	_ "github.com/ProtonMail/go-crypto/openpgp"
	_ "github.com/RoaringBitmap/roaring/v2"
	_ "github.com/anchore/go-lzo"
	_ "github.com/andybalholm/brotli"
	_ "github.com/aws/aws-sdk-go-v2/service/kms"
	_ "github.com/minio/sio"
	_ "github.com/ncw/swift/v2"
	_ "github.com/ncw/swift/v2/swifttest"
	_ "github.com/pkg/sftp"
	_ "github.com/ulikunitz/xz/lzma"
	_ "golang.org/x/crypto/chacha20poly1305"
	_ "golang.org/x/crypto/ssh"
	_ "golang.org/x/crypto/ssh/agent"
	_ "golang.org/x/crypto/ssh/knownhosts"
	_ "google.golang.org/api/option"
)
