package policy

// ReadArchive returns the files of an archive and the archive with a signature added.
func ReadArchive(raw []byte) (files map[string][]byte, signed []byte, err error) {
	a, err := readArchive(raw)
	if err != nil {
		return nil, nil, err
	}
	signed, err = a.write(signaturesFile, []byte("{}"))
	return a.files, signed, err
}
