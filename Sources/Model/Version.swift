/// The version of everything in this repository.
public enum FtvmVersion {
    public static let text = "0.1.0"
}
