// Package storage pins what is needed to run Kubernetes' own tests of its storage, as they are
// published, against our server.
package storage

import (
	_ "k8s.io/apiserver/pkg/storage/cacher"
	_ "k8s.io/apiserver/pkg/storage/etcd3"
	_ "k8s.io/apiserver/pkg/storage/etcd3/testserver"
	_ "k8s.io/apiserver/pkg/storage/storagebackend/factory"
)
