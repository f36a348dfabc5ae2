package server

// v2BcryptCost is that of passwords in the v2 API, whatever --bcrypt-cost says,
// as in etcd.
const v2BcryptCost = 10
